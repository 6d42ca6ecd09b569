"""The shape of a check, and short ways to say what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bot.records import Finding, Level

if TYPE_CHECKING:
    from bot.checks.case import Case

Status = Literal["pass", "warn", "fail", "skip"]
Group = Literal["files", "config", "tokenizer", "weights", "behaviour"]
WORST_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Check:
    """One entry of CHECKS. It runs from `level` on, and only where every check named in `needs` has not failed.

    `group`: what it is about, for whoever reads the findings. `combined`: it is for merges of several adapters only;
    `quantised`: for those that are stored quantised (True), or for those that are not (False). `on_request`: the field of
    the Subject that must hold something, for what is only checked where somebody asks. `hashes`: it needs the sha256 of every
    file, which comparing the weights tells by the way: it runs after that, wherever it stands.
    """

    id: str
    group: Group
    level: Level
    run: Callable[[Case], Finding]
    needs: tuple[str, ...] = ()
    combined: bool = False
    quantised: bool | None = None
    on_request: str = ""
    hashes: bool = False


def finding(id: str, status: Status, measured: str, allowed: str, why: str, worst: Iterable[str] = ()) -> Finding:
    """A Finding whose list of examples is short enough to read."""
    return Finding(id=id, status=status, measured=measured, allowed=allowed, why=why, worst=shorten(tuple(worst)))


def graded(
    id: str, allowed: str, right: tuple[str, str], *, fails: Iterable[str] = (), warns: Iterable[str] = ()
) -> Finding:
    """A finding from two lists of sentences; `right` is (measured, why) for when both are empty."""
    fails, warns = tuple(fails), tuple(warns)
    if not fails and not warns:
        return finding(id, "pass", right[0], allowed, right[1])
    status: Status = "fail" if fails else "warn"
    sentences = fails + warns
    measured = counted(len(sentences), "fault" if fails else "remark")
    return finding(id, status, measured, allowed, sentences[0], sentences[1:])


def counted(number: int, noun: str) -> str:
    """`1 tensor`, `2 tensors`, `1,000 tensors`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def shorten(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The first lines, and a count of the others."""
    if len(lines) <= WORST_SHOWN:
        return lines
    return (*lines[: WORST_SHOWN - 1], f"and {len(lines) - WORST_SHOWN + 1} more")
