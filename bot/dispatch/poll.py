"""No server: the tags of the allowed adapters are compared with what is known and published, and what is missing is dispatched.

Safe to repeat, with and without a kept state file. Without one, the Hub says what was merged, and the backend which runs there
are: a request's id is made from its tag and commit, so that the run of an earlier poll is known again, also one that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from bot.dispatch.allow import Allowed
from bot.dispatch.command import target_of
from bot.dispatch.dispatcher import Dispatcher
from bot.dispatch.records import Order, RunRequest, tag_key
from bot.dispatch.store import Store
from bot.errors import AdapterMergeError, Outside, Usage
from bot.publish.merged_before import merged_before

if TYPE_CHECKING:
    from bot.hub import Hub

Pairs = Sequence[tuple[str, str]]  # options of a run: name and value
# Missing: to be dispatched. Known: the state file has a request for it. Published: the Hub has it. Dispatched: sent by this poll, or
# its run was there already. Postponed: the backend or the Hub could not be asked. Failed, dropped: as requests are.
TagStatus = Literal["missing", "known", "published", "dispatched", "postponed", "failed", "dropped"]


@dataclass(frozen=True, kw_only=True)
class PolledTag:
    """A tag, and what a poll makes of it. `why`: one sentence."""

    adapter: str
    tag: str
    sha: str
    status: TagStatus
    why: str
    request: str = ""
    run_url: str = ""


@dataclass(frozen=True, kw_only=True)
class Poll:
    """What was seen. `problems`: what could not be looked at, one error each."""

    tags: tuple[PolledTag, ...]
    problems: tuple[AdapterMergeError, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, or that of what could not be asked or sent. A run that failed is no failure of the poll."""
        if self.problems:
            return self.problems[0].exit_code
        return Outside.exit_code if any(tag.status == "postponed" for tag in self.tags) else 0


def look(hub: Hub, allowed: Allowed, store: Store | None, options: Pairs = ()) -> Poll:
    """Compare tags with what is known and published; no weight is downloaded, nothing is written. Raises Usage for a pattern
    whose repos cannot be listed. `store` None: nothing is remembered. `options`: of every run."""
    tags: list[PolledTag] = []
    problems: list[AdapterMergeError] = []
    for owner, patterns in _by_owner(allowed).items():
        try:
            adapters = _adapters(owner, patterns, hub)
        except AdapterMergeError as error:
            problems.append(error)
            continue
        for adapter in adapters:
            try:
                tags += _compared(adapter, hub, allowed, store, options)
            except AdapterMergeError as error:
                problems.append(error)
    return Poll(tags=tuple(tags), problems=tuple(problems))


def dispatch_missing(
    poll: Poll, store: Store, dispatcher: Dispatcher, after: Callable[[], None] = lambda: None, options: Pairs = ()
) -> Poll:
    """Dispatch what is missing, work the outbox until nothing is due, and say what became of each tag. `after`: done after every
    step. `options`: of every run."""
    requests: dict[str, RunRequest] = {}
    for tag in poll.tags:
        if tag.status == "missing":
            key = tag_key(tag.adapter, tag.tag, tag.sha)
            order = Order(
                key=key, adapter=tag.adapter, revision=tag.tag, sha=tag.sha, origin="poll", options=tuple(options)
            )
            if (request := store.add(order, looked_for=True) or store.by_key(key)) is not None:
                requests[key] = request
    while dispatcher.step():
        after()
    after()
    tags = (_after_dispatch(tag, requests, store) for tag in poll.tags)
    return replace(poll, tags=tuple(tags))


def _by_owner(allowed: Allowed) -> dict[str, list[str]]:
    """The patterns of each owner. Raises Usage for one without an owner's name: nobody lists all of the Hub."""
    owners: dict[str, list[str]] = {}
    for pattern in allowed.repos:
        owner, _, name = pattern.partition("/")
        if "*" in owner:
            raise Usage(
                f"The repos of --allow {pattern} cannot be listed.", remedy="Name each owner, as --allow 'owner/*'."
            )
        owners.setdefault(owner, []).append(name)
    return owners


def _adapters(owner: str, names: Sequence[str], hub: Hub) -> list[str]:
    """The allowed repos of an owner; those of a pattern where they hold an adapter."""
    named = [f"{owner}/{name}" for name in names if "*" not in name]
    if len(named) == len(names):
        return named
    some = Allowed.of([f"{owner}/{name}" for name in names])
    listed = [adapter for adapter in hub.adapters_of(owner) if some.repo(adapter)]
    return sorted({adapter.lower(): adapter for adapter in (*named, *listed)}.values())


def _compared(adapter: str, hub: Hub, allowed: Allowed, store: Store | None, options: Pairs) -> Iterator[PolledTag]:
    tags = sorted((tag, sha) for tag, sha in hub.tags_of(adapter).items() if allowed.tag(tag))
    requests = {tag: store.by_key(tag_key(adapter, tag, sha)) if store else None for tag, sha in tags}
    unknown = {sha for tag, sha in tags if requests[tag] is None}
    target = target_of(adapter, options)
    merged = merged_before(target, unknown, hub) if unknown else set()
    for tag, sha in tags:
        request = requests[tag]
        compared = PolledTag(adapter=adapter, tag=tag, sha=sha, status="missing", why="It is merged nowhere yet.")
        if request is not None:
            yield replace(
                compared, status="known", why=_state_in_words(request), request=request.id, run_url=_run_url(request)
            )
        elif sha in merged:
            yield replace(compared, status="published", why=f"{target} has its merge, or was offered it.")
        else:
            yield compared


def _after_dispatch(tag: PolledTag, requests: dict[str, RunRequest], store: Store) -> PolledTag:
    request = requests.get(tag_key(tag.adapter, tag.tag, tag.sha))
    request = store.request(request.id) if request else None
    if request is None:
        return tag
    status: TagStatus = "dispatched"
    if request.state in ("failed", "dropped"):
        status = "failed" if request.state == "failed" else "dropped"
    elif request.state in ("waiting", "sending"):
        status = "postponed"
    return replace(tag, status=status, why=_state_in_words(request), request=request.id, run_url=_run_url(request))


def _state_in_words(request: RunRequest) -> str:
    """How a request stands, in a sentence."""
    fate = request.fate
    state = fate.status if fate and request.state in ("sent", "done", "failed") else request.state
    why = f" {request.reason} {request.remedy}".rstrip() if request.reason else ""
    return f"RunRequest {request.id} is {state}{f': {fate.url}' if fate and fate.url else ''}.{why}"


def _run_url(request: RunRequest) -> str:
    return request.run.url if request.run else ""
