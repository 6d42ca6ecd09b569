"""Who may see the result: it follows its inputs. A private input never becomes a public output unless asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bot.errors import Outside, Refused
from bot.events import Emit, Note
from bot.records import Sources

if TYPE_CHECKING:
    from bot.hub import Hub, Target


# (base or adapter, repo or None for a folder, whether it is private, its gate)
Input = tuple[str, str | None, bool, str | None]


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """How a new repo is to be seen: `gated` is auto, manual or None; `why` says what made it private."""

    private: bool
    gated: str | None
    why: str


def decide(repos: Iterable[tuple[str, str | None]], private: str, hub: Hub, emit: Emit) -> Visibility:
    """`repos`: (base or adapter, repo) of every input, None for a folder. `private`: auto (follow the inputs), true or false.

    What this token cannot look up counts as private.
    """
    from bot.hub import HubBusy

    inputs: list[Input] = []
    for role, repo in repos:
        try:
            is_private, gate = (True, None) if repo is None else hub.privacy(repo)
        except Outside as error:
            if isinstance(error, HubBusy):  # says nothing of the input: an hour later the result would be a public one
                raise
            emit(Note(text=f"{error.what} It counts as private.", level="warning"))
            is_private, gate = True, None
        inputs.append((role, repo, is_private, gate))
    return of_inputs(inputs, private, emit)


def of_sources(sources: Sources, private: str, emit: Emit) -> Visibility:
    """`decide`, by what was said of the inputs when they were pinned: before any weight is downloaded."""
    pinned = (sources.base, *sources.adapters)
    return of_inputs([(source.role, source.repo, source.private, source.gated) for source in pinned], private, emit)


def of_inputs(inputs: Iterable[Input], private: str, emit: Emit) -> Visibility:
    """The visibility of a result of these. Warns where a private input becomes a public result, as asked."""
    reasons: list[str] = []
    gated: str | None = None
    for role, repo, is_private, gate in inputs:
        if repo is None:
            reasons.append(f"the {role} is a local folder")
            continue
        if is_private:
            reasons.append(f"{repo} is private")
        elif gate:
            reasons.append(f"{repo} is gated")
        gated = "manual" if "manual" in (gate, gated) else gate or gated
    hidden = [reason for reason in reasons if reason.endswith(" is private")]
    if private == "false" and hidden:
        text = f"{' and '.join(hidden)}; the result will be public, as asked, and shows everyone what was made of it."
        emit(Note(text=text, level="warning"))
    return Visibility(
        private={"true": True, "false": False}.get(private, bool(reasons)), gated=gated, why=" and ".join(reasons)
    )


def require_fit(visibility: Visibility, private: str, target: Target | None) -> None:
    """Raises Refused where publishing to an existing repo would show what has to stay hidden."""
    if target is None or target.private or private == "false":
        return
    if private == "true":
        raise Refused(
            f"The result was asked to be private, and {target.repo} is public.",
            remedy="Make that repo private, or name another target.",
        )
    if " is private" in visibility.why:
        raise Refused(
            f"{target.repo} is public, and {visibility.why}.",
            remedy="Name a private target, or pass --private false to publish it openly.",
        )
    if visibility.gated and not target.gated:
        raise Refused(
            f"{target.repo} is open to everyone, and {visibility.why}.",
            remedy="Gate that repo on the Hub, name another target, or pass --private false to publish it openly.",
        )
