"""Runs told of on the Hub: one comment for each tag on its adapter, and one answer to each command, edited as the run goes on.

A Hub that says no, or does not answer, is a warning: nothing waits for a comment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from bot.dispatch.comments import help_text
from bot.dispatch.records import RunRequest
from bot.dispatch.store import Store
from bot.errors import AdapterMergeError, Forbidden, NotFound, Usage
from bot.events import Emit, Note
from bot.hub.errors import HubBusy
from bot.hub.talk import CLOSING, Conversation
from bot.project import HIDDEN_MARK
from bot.untrusted.markdown import code, link, unaddressed

if TYPE_CHECKING:
    from bot.hub import Hub

TOKEN = "ADAPTER_MERGE_HUB_TOKEN"
AGAIN = 60.0  # seconds until a Hub that did not answer is tried again
LONGEST = 800  # characters of a reason or a remedy
WORDS = {
    "waiting": "waiting to be sent", "sending": "being sent", "sent": "sent", "queued": "queued", "running": "running",
    "published": "published", "unchanged": "published before, and unchanged", "dry-run": "planned", "verified": "verified",
    "refused": "refused", "not-verified": "**not verified**, and not published", "failed": "**failed**", "dropped": "not run",
    "answered": "",
}  # fmt: skip


class Announcer:
    """Tells of what changed in the store since it was told last. `hub`: with the token that comments."""

    def __init__(self, store: Store, hub: Hub, emit: Emit) -> None:
        self.store, self.hub, self.emit = store, hub, emit

    def __call__(self) -> None:
        """Tell everything that is to be told now. Raises nothing of ours: a state file that cannot be written is a warning too."""
        try:
            self._tell_all()
        except AdapterMergeError as error:
            self.emit(Note(text=str(error), level="warning"))

    def _tell_all(self) -> None:
        while (request := self.store.claim_telling()) is not None:
            try:
                self._tell(request)
            except AdapterMergeError as error:
                self._warn(request, error)
                if _is_refusal(error):
                    self.store.announce(request, request.announced, request.comment_digest)
                else:
                    self.store.tell_later(request, AGAIN)

    def _tell(self, request: RunRequest) -> None:
        text = text_of(request)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        if digest == request.comment_digest or not _is_worth_telling(request) or self._is_left_to_another(request):
            self.store.announce(request, request.announced, request.comment_digest)
            return
        announced = request.announced or self._made_before(request)
        if announced:
            number, _, remark = announced.partition("/")
            self.hub.edit(_repo(request), int(number), remark, text)
        else:
            announced = self._make(request, text)
        self.store.announce(request, announced, digest)

    def _is_left_to_another(self, request: RunRequest) -> bool:
        return request.order.answer is None and self.store.is_superseded(request)

    def _made_before(self, request: RunRequest) -> str:
        """The comment that bears the request's mark, as number/comment: made before a restart, or by a call whose answer was lost."""
        repo, me, mark = _repo(request), self.hub.whoami().name, mark_of(request)
        asked_in = _asked_in(request)
        all_of_ours: Iterable[Conversation] = self.hub.my_conversations(repo)
        for each in [self.hub.conversation(repo, asked_in)] if asked_in else all_of_ours:
            if remark := each.marked(me, mark):
                return f"{each.num}/{remark.id}"
        return ""

    def _make(self, request: RunRequest, text: str) -> str:
        """A comment as number/comment; "" where our discussion was closed: then nothing is said any more."""
        repo, mark = _repo(request), mark_of(request)
        if asked_in := _asked_in(request):
            return f"{asked_in}/{self.hub.say(repo, asked_in, text, mark)}"
        ours = self.hub.our_conversations(repo)
        if any(each.closed for each in ours):
            return ""
        if ours:
            return f"{ours[0].num}/{self.hub.say(repo, ours[0].num, text, mark)}"
        opened = self.hub.open_conversation(repo, text, mark)
        remark = opened.marked(self.hub.whoami().name, mark)
        return f"{opened.num}/{remark.id}" if remark else ""

    def _warn(self, request: RunRequest, error: AdapterMergeError) -> None:
        self.emit(Note(text=f"{_repo(request)} was not told of request {request.id}: {error}", level="warning"))


def account_that_comments(environment: Mapping[str, str], emit: Emit) -> Hub:
    """The Hub by the token that comments. Raises Usage where there is none, Forbidden where it may comment nowhere.

    It waits for nobody: what the Hub does not answer now is tried again with the next round.
    """
    from bot.hub import Hub

    token = environment.get(TOKEN)
    if not token:
        raise Usage(
            f"There is no token to comment with: {TOKEN} is not set.",
            remedy=f"Set {TOKEN} to a token that may take part in discussions, or leave --announce out.",
        )
    hub = Hub(read_token=token, write_token=token, patience=())
    try:
        hub.require_discussing()
    except HubBusy as error:
        emit(Note(text=str(error), level="warning"))
    return hub


def mark_of(request: RunRequest) -> str:
    """What the comment on this request is known by, hidden in it. It is the same for every request of one tag."""
    order = request.order
    subject = f"answer {order.answer}" if order.answer else f"tag {order.adapter.lower()} {order.revision or order.sha}"
    return f"{HIDDEN_MARK}{hashlib.sha256(subject.encode()).hexdigest()[:24]} -->"


def text_of(request: RunRequest) -> str:
    """The whole comment. Nothing in it that others wrote is markup, or calls anybody."""
    order, fate = request.order, request.fate
    if order.kind == "help":
        return f"{help_text(order)}\n{mark_of(request)}"
    is_run = fate is not None and request.state in ("sent", "done", "failed")
    status = fate.status if fate and is_run else request.state
    at = code(order.revision) if order.revision else f"commit {code(order.sha[:12])}" if order.sha else "main"
    named = {"merge": "The merge", "verify": "The verification", "plan": "The plan", "help": ""}[order.kind]
    of = f" of {unaddressed(order.adapter)}" if order.kind == "verify" else f" of {at}"
    lines = [f"{named}{of} by `adapter-merge`: {WORDS[status]}." if named and WORDS[status] else ""]
    if fate and is_run and fate.url:
        lines.append(f"{link('The merged model', fate.url)}.")
    if fate and is_run and fate.verdict:
        lines.append(f"{'Proof' if order.kind != 'plan' else 'Result'}: {unaddressed(fate.verdict)}.")
    if request.run and request.run.url:
        lines.append(f"{link('The run', request.run.url)}.")
    words = " ".join(filter(None, (unaddressed(request.reason[:LONGEST]), unaddressed(request.remedy[:LONGEST]))))
    words = f"Reason: {words}" if words else ""  # at the beginning of a line it could be a heading
    closing = f"\n\n{CLOSING}" if order.answer is None else ""
    paragraphs = [" ".join(filter(None, lines)), words]
    return "\n\n".join(filter(None, paragraphs)) + closing + f"\n{mark_of(request)}"


def _is_refusal(error: AdapterMergeError) -> bool:
    """Whether the Hub said no, and would again: the comment was hidden, the repo takes no discussions, the token may not."""
    status = getattr(getattr(error.__cause__, "response", None), "status_code", 0)
    return isinstance(error, Forbidden | NotFound) or (not isinstance(error, HubBusy) and 400 <= status < 500)


def _is_worth_telling(request: RunRequest) -> bool:
    """Not what nobody asked for, and no word to whoever may not ask; a comment that is there is always kept right."""
    order = request.order
    if order.answer is not None:
        return request.state == "done" or (order.sha is not None and request.state in ("sent", "failed"))
    if order.kind != "merge":
        return False
    return bool(request.announced) or request.state in ("sent", "done", "failed")


def _repo(request: RunRequest) -> str:
    """Whose discussion the comment is in."""
    return (request.order.answer or request.order.adapter).partition("#")[0]


def _asked_in(request: RunRequest) -> int | None:
    """The number of the discussion that a command was given in."""
    return int(request.order.answer.partition("#")[2].partition("/")[0]) if request.order.answer else None
