"""A word on the adapter's own Hub repo: one discussion of ours, with a comment for every new merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.action.identity import publishing
from bot.action.state import MergeJob
from bot.events import Emit, Note
from bot.hub import Hub
from bot.hub.talk import CLOSING
from bot.report_document import Pin
from bot.untrusted.markdown import cell, code

if TYPE_CHECKING:
    from bot.action.phases import RunContext

MARK = "<!-- adapter-merge:merged -->"


def tell_adapters(run: RunContext) -> None:
    """On every adapter that came from the Hub and was published just now."""
    for job in run.store.state.jobs:
        for source in job.sources if job.status == "published" else ():
            repo = source.repo
            if repo is None or job.target is None:
                continue
            if run.tokens.by_identity:
                text = f"A trusted publisher may write to {job.target} only, so that {repo} got no comment."
                run.emit(Note(text=f"{text} Pass hf-token.", level="warning"))
                continue
            with publishing(job.target, run.tokens, run.store.memory) as hub:
                _comment(hub, repo, _text(job, source), run.emit)


def _comment(hub: Hub, repo: str, text: str, emit: Emit) -> None:
    """Our open discussion gets a comment; where there is none, it is opened; one that was closed stays so."""
    ours = hub.our_conversations(repo)
    if any(each.closed for each in ours):
        return
    if ours:
        hub.say(repo, ours[0].num, text, text)
        url = ours[0].url
    else:
        url = hub.open_conversation(repo, f"{text}\n\n{CLOSING}\n{MARK}", text).url
    emit(Note(text=f"Hub comment: {url}"))


def _text(job: MergeJob, source: Pin) -> str:
    done = job.publication
    assert done is not None
    at = " ".join(filter(None, (source.revision or str(source.sha)[:12], source.subfolder)))
    others = " with others" if len(job.sources) > 1 else ""
    how = "proposed to" if done.how == "pr" else "published as"
    return (
        f"`adapter-merge` merged {code(at)}{others} into its base, proved the merge, and {how} "
        f"[{cell(str(done.repo))}]({done.link}). The evidence is `verification.json` there."
    )
