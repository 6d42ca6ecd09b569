"""One base, many adapters, each into a model of its own: the base is pinned, hashed and downloaded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bot.errors import AdapterMergeError, Usage
from bot.events import Emit, Note
from bot.pipeline import run
from bot.records import Outcome, Ref, Request, Source
from bot.target import target_of

if TYPE_CHECKING:
    from bot.hub import Hub


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How one of the runs ended: with an outcome, or with an error, which does not stop the others."""

    request: Request
    outcome: Outcome | None = None
    error: AdapterMergeError | None = None


def run_each(requests: Sequence[Request], hub: Hub, emit: Emit) -> Iterator[RunEnd]:
    """Run one request after the other. With an output, each gets a folder in it, called like its adapter.

    Raises Usage where two would have the same folder, or one would be published over another's adapter.
    """
    require_none_replaced(requests)
    bases: dict[Ref, Source] = {}
    for number, request in enumerate(_with_own_outputs(requests), 1):
        emit(Note(text=f"{number} of {len(requests)}: {request.adapter.text}"))
        try:
            yield RunEnd(request=request, outcome=run(request, hub, emit, bases))
        except AdapterMergeError as error:
            yield RunEnd(request=request, error=error)


def require_none_replaced(requests: Sequence[Request]) -> None:
    """Raises Usage where one merge's target is the adapter that another is to be made of."""
    adapters = {
        ref.repo.casefold(): ref.repo for request in requests for ref in (request.adapter, *request.more) if ref.repo
    }
    for request in requests:
        if request.publish == "none" or not (request.target or request.adapter.repo):
            continue
        target = target_of(request)
        if target.casefold() in adapters:
            raise Usage(
                f"{request.adapter.text} would be published to {target}, which is one of the adapters to be merged.",
                remedy="Leave that adapter out, or name another target.",
            )


def _with_own_outputs(requests: Sequence[Request]) -> list[Request]:
    names = [_name(request.adapter) for request in requests]
    same = [name for name in names if names.count(name) > 1]
    if same and any(request.output for request in requests):
        raise Usage(f"Two of the adapters are called {same[0]}.", remedy="Merge them in two runs.")
    return [
        replace(request, output=request.output / name) if request.output else request
        for request, name in zip(requests, names, strict=True)
    ]


def _name(adapter: Ref) -> str:
    return (
        adapter.as_repo.rpartition("/")[2] if adapter.as_repo else (adapter.folder or Path(adapter.text)).resolve().name
    )
