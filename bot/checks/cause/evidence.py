"""What the hypotheses are tested on: the findings, the tensors that are not as they must be, and others to compare them with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from bot.checks.case import Case
from bot.checks.cause.numbers import Floats
from bot.checks.cause.suspects import TensorPart, parts_of
from bot.checks.elementwise.weights import sweep_all
from bot.checks.expected.adapter_claims import adapter_claims
from bot.checks.expected.changes import Expected
from bot.checks.expected.claims import Claims
from bot.checks.finding import Status
from bot.checks.reading.checkpoint import FLOATS
from bot.records import Finding

if TYPE_CHECKING:
    from bot.checks.elementwise.tally import Tally


@dataclass(frozen=True, kw_only=True)
class GridSample:
    """A part at some of its rows and columns: the base's numbers, and what must be there."""

    weight: Floats
    exact: Floats


class Evidence:
    """Of one case, after its checks. Nothing in it is computed before it is asked for."""

    def __init__(self, case: Case, findings: Mapping[str, Finding]) -> None:
        self.case = case
        self.findings = findings
        self.deviating: list[TensorPart] = []  # the suspects whose numbers are off where they were looked at
        self._grids: dict[tuple[str, int], GridSample] = {}

    def status(self, check: str) -> Status | None:
        """How a check ended; None where it was not run."""
        finding = self.findings.get(check)
        return finding.status if finding else None

    def failed(self, *checks: str) -> bool:
        """Whether one of these did."""
        return any(self.status(check) == "fail" for check in checks)

    @property
    def claims(self) -> Claims | None:
        """What the merge must be; None where no check has read the adapter."""
        return self.case.known(adapter_claims)

    @property
    def expected(self) -> Mapping[str, Expected]:
        """Every tensor that must be there; empty where that is not known."""
        return self.claims.expected if self.claims else {}

    @cached_property
    def tallies(self) -> list[Tally]:
        """Of the tensors that were compared."""
        swept = self.case.known(sweep_all)
        return list(swept.tallies.values()) if swept else []

    @property
    def foreign(self) -> bool:
        """Whether another tool made it."""
        return not self.case.subject.ours

    def parts(self, *, touched: bool = True) -> list[TensorPart]:
        """All parts of the tensors that were compared, and that the adapter changes, or does not."""
        return [part for tally in self.tallies if tally.wanted.touched == touched for part in self._of(tally)]

    def suspects(self) -> Iterator[TensorPart]:
        """The parts of the tensors that are not what they must be."""
        for tally in self.tallies:
            if tally.wrong and self.case.model.tensors[tally.key].stored.dtype in FLOATS:
                yield from self._of(tally)

    def _of(self, tally: Tally) -> list[TensorPart]:
        merged = self.case.model.tensors[tally.key]
        return parts_of(tally.key, tally.wanted, merged, tally.wrong, tally.arithmetic)

    def on_grid(self, part: TensorPart) -> GridSample:
        """A part at its grid, which is the same for all parts of its shape."""
        key = (part.key, part.lines[0])
        if key not in self._grids:
            rows, columns = part.grid_lines
            weight = part.source(rows)
            self._grids[key] = GridSample(weight=weight[:, columns], exact=part.exact(rows, weight)[:, columns])
        return self._grids[key]
