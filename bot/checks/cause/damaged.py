"""A few rows or elements only are wrong, and everything around them is right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from bot.checks.cause.evidence import Evidence
from bot.checks.cause.hypothesis import Cause, Explained, Hypothesis
from bot.checks.cause.names import rows_in_words
from bot.checks.cause.numbers import Floats, round_to
from bot.checks.cause.suspects import LOOKED_AT, TensorPart
from bot.checks.finding import counted

FEW = 1 / 16  # of a tensor's rows
MOST = 0.99  # of its deviation
TENSORS_READ = 16
ROWS_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class WrongRows:
    """Rows of a tensor in which nearly all of its deviation lies; `elements` differ in them, `as_base` of these are the base's."""

    part: TensorPart
    rows: list[int]
    elements: int
    as_base: int
    not_finite: int
    deviation: float


def _local(remaining: list[Explained], evidence: Evidence) -> Iterable[tuple[Cause, list[Explained]]]:
    """Of the tensors that nothing explains, and those that are right wherever they were looked at."""
    looked_at = {part.key for part in evidence.deviating}
    unseen = [part.key for part in evidence.suspects() if part.key not in looked_at]
    keys = list(dict.fromkeys([*(each.part.key for each in remaining), *unseen]))[:TENSORS_READ]
    local = [rows for key in keys if (rows := _wrong_rows(key, evidence)) is not None]
    if local:
        own = {rows.part.key for rows in local}
        yield _cause(local, evidence), [each for each in remaining if each.part.key in own]


def _wrong_rows(key: str, evidence: Evidence) -> WrongRows | None:
    parts = [part for part in evidence.suspects() if part.key == key]
    sums: dict[int, float] = {}
    numbers: dict[int, tuple[int, int, int]] = {}
    for rows, stored, right, base in _all_rows(parts):
        off = stored != round_to(right, parts[0].merged.stored.dtype)
        squares = np.square(np.where(off & np.isfinite(stored), stored - right, 0.0)).sum(axis=1)
        bad = (off & ~np.isfinite(stored)).sum(axis=1)
        same = (off & (stored == base)).sum(axis=1)
        for at in np.flatnonzero(off.any(axis=1)):
            sums[rows[at]] = sums.get(rows[at], 0.0) + (float(squares[at]) if not bad[at] else np.inf)
            before = numbers.get(rows[at], (0, 0, 0))
            numbers[rows[at]] = tuple(map(sum, zip(before, (off[at].sum(), same[at], bad[at]), strict=True)))  # type: ignore[assignment]
    height = sum(len(part.lines) for part in parts)
    worst = _most(sums)
    if not worst or len(worst) > max(1, FEW * height):
        return None
    elements, as_base, bad_count = (sum(numbers[row][at] for row in worst) for at in range(3))
    total = sum(value for value in sums.values() if np.isfinite(value))
    return WrongRows(part=parts[0], rows=sorted(worst), elements=int(elements), as_base=int(as_base),
                     not_finite=int(bad_count), deviation=total)  # fmt: skip


def _all_rows(parts: list[TensorPart]) -> Iterator[tuple[list[int], Floats, Floats, Floats]]:
    """(numbers of rows, what is stored, what must be, what the base has) over whole tensors, in bounded memory."""
    for part in parts:
        tall = max(1, LOOKED_AT // max(1, part.shape[1]))
        for low in range(0, len(part.lines), tall):
            rows = list(part.lines[low : low + tall])
            before = part.before(rows)
            source = part.source(rows)
            yield rows, part.read(part.merged, rows), part.exact(rows, source), source if before is None else before


def _most(sums: dict[int, float]) -> list[int]:
    """The fewest rows that have MOST of the deviation; those with numbers that are none first."""
    infinite = [row for row, value in sums.items() if not np.isfinite(value)]
    finite = {row: value for row, value in sums.items() if np.isfinite(value)}
    total, kept, rows = sum(finite.values()), 0.0, list(infinite)
    for row in sorted(finite, key=lambda row: -finite[row]):
        if kept >= MOST * total:
            break
        kept += finite[row]
        rows.append(row)
    return rows


def _cause(local: list[WrongRows], evidence: Evidence) -> Cause:
    elements = sum(rows.elements for rows in local)
    as_base = sum(rows.as_base for rows in local)
    bad = sum(rows.not_finite for rows in local)
    where = []
    for rows in local[:ROWS_NAMED]:
        where.append(
            f"{rows_in_words(rows.rows, rows.part.wanted.shape, rows.part.view, ROWS_NAMED)} of {rows.part.key}"
        )
    if len(local) > ROWS_NAMED:
        where.append(f"{len(local) - ROWS_NAMED} more tensors")
    what = f"A few rows only are wrong, {counted(elements, 'element')} in all: {'; '.join(where)}"
    if bad:
        what += f". {counted(bad, 'element')} of them are NaN or infinite"
    elif as_base == elements:
        what += ". There the base's numbers still stand"
    figures = {
        "elements": elements,
        "rows": sum(len(rows.rows) for rows in local),
        "as_base": as_base,
        "not_finite": bad,
    }
    return Cause(kind="few-rows", sentence=f"{what}.", tensors=tuple(rows.part.key for rows in local), figures=figures,
                 deviation=sum(rows.deviation for rows in local))  # fmt: skip


DAMAGED = Hypothesis(name="damaged", remaining=_local)
