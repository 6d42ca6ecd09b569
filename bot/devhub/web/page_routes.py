"""A few plain pages, so that a person who opens a printed address sees what is there."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from starlette.responses import HTMLResponse
from starlette.routing import BaseRoute

from .. import access, card, discussions, repos, trees
from ..records import Commit, Entry, Repo
from .call import KINDS, Answer, Call, route

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d1d1f;"
    "background:#fff}pre{white-space:pre-wrap;background:#f5f5f7;padding:1rem;border-radius:8px}"
    "table{border-collapse:collapse}td{padding:.1rem 1rem .1rem 0}a{color:#06c}small{color:#666}"
)


def _html(title: str, body: str) -> HTMLResponse:
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return HTMLResponse(f'<!doctype html><html lang="en">{head}<style>{STYLE}</style><body>{body}', headers=policy)


def home(call: Call) -> Answer:
    """GET /: the repos that anybody may see."""
    items = []
    for kind in KINDS.values():
        for repo in repos.every(call.site.db, kind):
            if access.may_see(call.site.db, call.viewer, repo):
                items.append(f'<li><a href="/{quote(repo.web_path)}">{escape(repo.name)}</a> <small>{kind}</small>')
    listed = "<ul>" + "".join(items) + "</ul>" if items else "<p>No repos yet.</p>"
    return _html("Local Hub", f"<h1>Local Hub</h1>{listed}")


def repo_page(call: Call) -> Answer:
    """GET /{repo}: card, files, pull requests."""
    repo = call.repo()
    commit = repos.resolve(call.site.db, repo, "main")
    files = trees.entries(call.site.db.read, commit.tree)
    readme = files.get("README.md")
    text = ""
    if readme is not None and readme.size <= card.CARD_LIMIT and access.may_open_files(call.site.db, call.viewer, repo):
        text = call.site.objects.read(readme.sha256).decode("utf-8", "replace")
    body = _title(repo, commit) + (f"<pre>{escape(text)}</pre>" if text else "<p>No card to show.</p>")
    return _html(repo.name, body + _file_table(repo, "main", files) + _threads(call, repo))


def _title(repo: Repo, commit: Commit) -> str:
    link = f'<a href="/{quote(repo.web_path)}">{escape(repo.name)}</a>'
    marks = [repo.kind, "private" if repo.private else "public", *(["gated"] if repo.gate else []), commit.oid[:8]]
    return f'<p><a href="/">Local Hub</a></p><h1>{link}</h1><p><small>{" · ".join(marks)}</small></p>'


def _file_table(repo: Repo, revision: str, files: dict[str, Entry]) -> str:
    base = f"/{quote(repo.web_path)}/resolve/{quote(revision, safe='')}"
    rows = (
        f'<tr><td><a href="{base}/{quote(entry.path)}">{escape(entry.path)}</a><td>{entry.size:,}<td>'
        f"<small>{entry.sha256[:12] if entry.lfs else ''}</small>"
        for entry in files.values()
    )
    return f"<h2>Files</h2><table>{''.join(rows)}</table>"


def _threads(call: Call, repo: Repo) -> str:
    found = discussions.every(call.site.db, repo)
    if not found:
        return ""
    items = (
        f'<li><a href="/{quote(repo.web_path)}/discussions/{d.num}">#{d.num} {escape(d.title)}</a> '
        f"<small>{d.status}{', pull request' if d.is_pull_request else ''}</small>"
        for d in found
    )
    return f"<h2>Discussions</h2><ul>{''.join(items)}</ul>"


def tree_page(call: Call) -> Answer:
    """GET /{repo}/tree/{rev} and /{repo}/commit/{oid}: the files at a revision."""
    repo = call.repo()
    commit = repos.resolve(call.site.db, repo, call.params["rev"])
    files = trees.entries(call.site.db.read, commit.tree)
    summary = f"<h2>{escape(commit.title)}</h2><p><small>{escape(commit.author)}, {commit.date}</small></p>"
    if commit.message:
        summary += f"<pre>{escape(commit.message)}</pre>"
    return _html(repo.name, _title(repo, commit) + summary + _file_table(repo, commit.oid, files))


def discussion_page(call: Call) -> Answer:
    """GET /{repo}/discussions/{n}."""
    repo = call.repo()
    commit = repos.resolve(call.site.db, repo, "main")
    number = call.params["num"]
    found = discussions.get(call.site.db.read, repo, int(number) if number.isdigit() else 0)
    body = f"<h2>{escape(found.title)} <small>#{found.num}, {found.status}</small></h2>"
    if found.is_pull_request:
        revision = quote(discussions.pr_ref(found.num), safe="")
        body += f'<p><a href="/{quote(repo.web_path)}/tree/{revision}">Files of this pull request</a></p>'
    for event in discussions.events(call.site.db, repo, found.num):
        said = f"<p><small>{escape(event.author)}, {event.created}: {escape(event.type)}</small></p>"
        text = event.content["latest"]["raw"] if event.type == "comment" else " ".join(map(str, event.content.values()))
        body += f"{said}<pre>{escape(text)}</pre>"
    return _html(found.title, _title(repo, commit) + body)


def discussions_page(call: Call) -> Answer:
    """GET /{repo}/discussions."""
    repo = call.repo()
    commit = repos.resolve(call.site.db, repo, "main")
    return _html(repo.name, _title(repo, commit) + (_threads(call, repo) or "<p>No discussions yet.</p>"))


ROUTES: list[BaseRoute] = [
    route("/", home),
    route("/{web:web}{repo:repo}/discussions", discussions_page),
    route("/{web:web}{repo:repo}/discussions/{num}", discussion_page),
    route("/{web:web}{repo:repo}/tree/{rev}", tree_page),
    route("/{web:web}{repo:repo}/commit/{rev}", tree_page),
    route("/{web:web}{repo:repo}", repo_page),
]
