"""A few plain pages, so that a person who opens a printed address sees what is there."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from starlette.responses import HTMLResponse
from starlette.routing import BaseRoute

from bot.devhub import access, derived, discussions, errors, repos, trees

from ..records import Commit, Entry, Repo
from .call import KINDS, Answer, Call, route
from .markdown import as_html, metadata_as_html

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d1d1f;"
    "background:#fff}pre{white-space:pre-wrap;background:#f5f5f7;padding:1rem;border-radius:8px}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.15rem 1rem .15rem 0;text-align:left;"
    "vertical-align:top}article{border-top:1px solid #ddd;border-bottom:1px solid #ddd;margin:1.5rem 0;padding:.5rem 0}"
    "article td,article th{border-bottom:1px solid #eee}code{background:#f5f5f7;border-radius:4px;padding:0 .2em}"
    "pre code{padding:0}.metadata td:first-child{color:#666}a{color:#06c}small{color:#666}img{max-width:100%}"
)


def _html(title: str, body: str) -> HTMLResponse:
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'"}
    return HTMLResponse(f'<!doctype html><html lang="en">{head}<style>{STYLE}</style><body>{body}', headers=policy)


def home(call: Call) -> Answer:
    """GET /: the repos that anybody may see."""
    items = []
    for kind in KINDS.values():
        for repo in repos.every(call.site.db, kind):
            if access.may_see(call.site.db, call.viewer, repo):
                items.append(f'<li><a href="/{quote(repo.web_path)}">{escape(repo.name)}</a> <small>{kind}</small>')
    listed = "<ul>" + "".join(items) + "</ul>" if items else "<p>No repos yet.</p>"
    return _html("Local Hub", f"<h1>Local Hub</h1>{listed}{_how_to_use(call)}")


def _how_to_use(call: Call) -> str:
    """What a person types to use this Hub. Its token is in the served folder, and on no page."""
    address = escape(call.origin)
    name = escape(call.site.user)
    lines = (
        f"export HF_ENDPOINT={address}",
        "export HF_TOKEN=$(cat FOLDER/token)   # FOLDER: the one that is served",
        f"hf repos create {name}/my-model",
        f"hf upload {name}/my-model ./folder",
    )
    return f"<h2>Use it</h2><p>Its user is <b>{name}</b>. In a terminal:</p><pre>{chr(10).join(lines)}</pre>"


def repo_page(call: Call) -> Answer:
    """GET /{repo}: card, files, pull requests."""
    repo = call.repo()
    commit = repos.resolve(call.site.db, repo, "main")
    files = trees.entries(call.site.db.read, commit.tree)
    readme = files.get("README.md")
    text = ""
    if (
        readme is not None
        and readme.size <= derived.CARD_LIMIT
        and access.may_open_files(call.site.db, call.viewer, repo)
    ):
        text = call.site.objects.read(readme.sha256).decode("utf-8", "replace")
    body = _title(repo, commit) + (_card(repo, text) if text else "<p>No card to show.</p>")
    return _html(repo.name, body + _file_table(repo, "main", files) + _threads(call, repo))


def _card(repo: Repo, text: str) -> str:
    """The metadata first, then the card's words."""
    block = derived.front_matter(text)
    words = derived.FRONT_MATTER.sub("", text, count=1) if block is not None else text
    known = derived.metadata(text)
    metadata = metadata_as_html(known) if known or not block else f"<h2>Metadata</h2><pre>{escape(block)}</pre>"
    return f"{metadata}<article>{as_html(words, f'/{quote(repo.web_path)}/resolve/main')}</article>"


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
    threads = discussions.every(call.site.db, repo)
    if not threads:
        return ""
    items = (
        f'<li><a href="/{quote(repo.web_path)}/discussions/{d.num}">#{d.num} {escape(d.title)}</a> '
        f"<small>{d.status}{', pull request' if d.is_pull_request else ''}</small>"
        for d in threads
    )
    return f"<h2>Discussions</h2><ul>{''.join(items)}</ul>"


def tree_page(call: Call) -> Answer:
    """GET /{repo}/tree/{rev}[/{folder}] and /{repo}/commit/{oid}: the files at a revision, or those of a folder."""
    repo = call.repo()
    commit = repos.resolve(call.site.db, repo, call.params["rev"])
    start = f"{folder}/" if (folder := call.params.get("folder", "").strip("/")) else ""
    files = {
        path: entry for path, entry in trees.entries(call.site.db.read, commit.tree).items() if path.startswith(start)
    }
    if start and not files:
        raise errors.entry_not_found(folder)
    summary = f"<h2>{escape(commit.title)}</h2><p><small>{escape(commit.author)}, {commit.date}</small></p>"
    if commit.message:
        summary += f"<pre>{escape(commit.message)}</pre>"
    return _html(repo.name, _title(repo, commit) + summary + _file_table(repo, commit.oid, files))


def discussion_page(call: Call) -> Answer:
    """GET /{repo}/discussions/{n}."""
    repo = call.repo()
    commit = repos.resolve(call.site.db, repo, "main")
    number = call.params["num"]
    discussion = discussions.get(call.site.db.read, repo, int(number) if number.isdigit() else 0)
    body = f"<h2>{escape(discussion.title)} <small>#{discussion.num}, {discussion.status}</small></h2>"
    if discussion.is_pull_request:
        revision = quote(discussions.pr_ref(discussion.num), safe="")
        body += f'<p><a href="/{quote(repo.web_path)}/tree/{revision}">Files of this pull request</a></p>'
    for event in discussions.events(call.site.db, repo, discussion.num):
        byline = f"<p><small>{escape(event.author)}, {event.created}: {escape(event.type)}</small></p>"
        if event.type == "comment":
            body += f"{byline}<article>{as_html(event.content['latest']['raw'])}</article>"
        else:
            body += f"{byline}<pre>{escape(' '.join(map(str, event.content.values())))}</pre>"
    return _html(discussion.title, _title(repo, commit) + body)


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
    route("/{web:web}{repo:repo}/tree/{rev}/{folder:path}", tree_page),
    route("/{web:web}{repo:repo}/commit/{rev}", tree_page),
    route("/{web:web}{repo:repo}", repo_page),
]
