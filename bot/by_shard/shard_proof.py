"""The proof of a merge whose weight files come by one at a time: each is compared while it is here, the rest is checked last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from bot.by_shard.journal import Finished, tally_json, tally_of
from bot.checks.case import Case
from bot.checks.elementwise.tally import Swept, Tally
from bot.checks.elementwise.weights import sweep_all, sweep_of
from bot.checks.expected.adapter_claims import adapter_claims
from bot.events import Emit, silent
from bot.records import Json, Report, Stored
from bot.verify import verify

if TYPE_CHECKING:
    from bot.checks.subject import Subject


class Comparison:
    """Every element of some tensors of one file compared with what it must be, as far as they are there."""

    def __init__(self, case: Case, keys: frozenset[str], tallies: dict[str, Tally]) -> None:
        self._case, self._sweep, self._tallies = case, sweep_of(case, keys), tallies

    def up_to(self, written: int) -> int:
        """Compare what is there of a file that is written up to this byte; the byte up to which nothing is left to compare."""
        left = self._sweep.go(silent, written=written)
        return written if left is None else min(written, left)

    def finish(self) -> dict[str, Json]:
        """Compare the rest: what was counted, by key."""
        self._sweep.go(silent)
        self._case.slabs.clear()
        counted = self._sweep.swept.tallies
        self._tallies |= counted
        return {key: tally_json(tally) for key, tally in counted.items()}


class ShardProof:
    """One case, whose headers are read while every weight file is there by name, header and size."""

    def __init__(self, subject: Subject, emit: Emit) -> None:
        self._emit = emit
        self._case = Case(subject, silent)
        merged, _ = self._case.model, self._case.base
        self._keys: dict[str, list[str]] = {}
        self._tallies: dict[str, Tally] = {}
        for key, ref in merged.tensors.items():
            self._keys.setdefault(ref.stored.file, []).append(key)

    def read_adapter(self) -> tuple[str, ...]:
        """Read what must be there; what of it is not understood. To be asked for once no tensor that is not here can be read."""
        return self._case.once(adapter_claims).problems

    def reads(self, name: str) -> list[Stored]:
        """The base's tensors that one weight file is compared with, as they lie in its files."""
        expected = self._case.once(adapter_claims).expected
        wanted = [expected[key] for key in self._keys.get(name, ()) if key in expected]
        refs = [ref for each in wanted for ref in (each.source, each.base) if ref is not None]
        packed = [part for ref in refs if ref.packed for part in ref.packed.components.values()]
        base = self._case.subject.base
        return [ref.stored for ref in (*refs, *packed) if ref.path.parent == base and ref.packed is None]

    def begin(self, name: str) -> Comparison:
        """The comparison of one weight file, with what it is made from."""
        return Comparison(self._case, frozenset(self._keys.get(name, ())), self._tallies)

    def finish(self, finished: Iterable[Finished]) -> Report:
        """Every other check, over what was counted in all files."""
        counted: Mapping[str, Json] = {key: tally for each in finished for key, tally in each.tallies.items()}
        case = self._case
        expected = case.once(adapter_claims).expected
        shared = [key for key in case.model.tensors if key in expected]
        # What was counted here is whole: of a foreign merge also which way its deviations lean.
        tallies = {
            key: self._tallies.get(key) or tally_of(key, expected[key], counted[key])
            for key in shared
            if key in counted
        }
        skipped = tuple(key for key in shared if key not in counted)
        case.know(sweep_all, Swept(tallies=tallies, skipped=skipped))
        case.emit, case.weights_gone = self._emit, True
        return verify(case.subject, self._emit, case)
