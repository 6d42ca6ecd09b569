"""A word on the adapter's own Hub repo: one discussion of ours, with a comment for every new merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.action.identity import publishing
from bot.action.state import Job
from bot.events import Emit, Note
from bot.hub import Hub
from bot.hub.errors import gate
from bot.records import Json
from bot.untrusted.markdown import cell, code
from bot.untrusted.redact import redact

if TYPE_CHECKING:
    from bot.action.phases import Run

MARK = "<!-- adapter-merge:merged -->"
TITLE = "A merged model of this adapter"
CLOSING = "Feel free to close this discussion; a closed one is left alone."


def tell_adapters(run: Run) -> None:
    """On every adapter that came from the Hub and was published just now."""
    for job in run.store.state.jobs:
        for source in job.sources if job.status == "published" else ():
            repo = source.get("repo")
            if repo is None or job.target is None:
                continue
            if run.tokens.by_identity:
                text = f"A trusted publisher may write to {job.target} only, so that {repo} got no comment."
                run.emit(Note(text=f"{text} Pass hf-token.", level="warning"))
                continue
            with publishing(job.target, run.tokens, run.store.memory) as hub:
                _comment(hub, repo, _text(job, source), run.emit)


def _comment(hub: Hub, repo: str, said: str, emit: Emit) -> None:
    """Our open discussion gets a comment; where there is none, it is opened; one that was closed stays so."""
    me = hub.whoami().name
    where = hub.where_writing(f"comment on {repo}", repo)
    with gate(where):
        ours = [d for d in hub.outputs.get_repo_discussions(repo, author=me) if d.title == TITLE and d.author == me]
        if any(discussion.status == "closed" for discussion in ours):
            return
        if ours:
            hub.outputs.comment_discussion(repo, ours[0].num, redact(said))
            url = ours[0].url
        else:
            text = redact(f"{said}\n\n{CLOSING}\n{MARK}")
            url = hub.outputs.create_discussion(repo, TITLE, description=text).url
    emit(Note(text=f"Hub comment: {url}"))


def _text(job: Job, source: Json) -> str:
    found = job.publication or {}
    at = " ".join(filter(None, (source.get("revision") or str(source.get("sha"))[:12], source.get("subfolder"))))
    others = " with others" if len(job.sources) > 1 else ""
    where = found.get("pr_url") or found.get("url")
    how = "proposed to" if found.get("how") == "pr" else "published as"
    return (
        f"`adapter-merge` merged {code(at)}{others} into its base, proved the merge, and {how} "
        f"[{cell(str(found.get('repo')))}]({where}). The evidence is `verification.json` there."
    )
