"""The merged checkpoint that base and adapter demand: every key, what it is made from, and what config.json must say."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from bot.checks.expected import config_changes
from bot.checks.expected.changes import (
    AdapterReading,
    Change,
    Expected,
    LowRank,
    ProbedParameter,
    Shift,
    TensorStep,
    TokenRows,
    WholeTensor,
)
from bot.checks.expected.config_changes import Declared
from bot.checks.expected.layer_replication import ReplicatedLayers
from bot.checks.expected.parameter_names import ParameterNames
from bot.checks.expected.placement import (
    Located,
    Misplaced,
    place_low_rank,
    place_probed,
    place_shift,
    place_tokens,
    place_whole,
    view_of,
)
from bot.checks.expected.ties import Changes, Ties, at_several_depths, tie
from bot.checks.reading.checkpoint import FLOATS, TensorRef, View
from bot.checks.reading.symbolic import SymbolicTensor
from bot.records import Json


@dataclass(kw_only=True)
class TensorDraft:
    """An Expected in the making."""

    base: TensorRef | None
    source: TensorRef
    dtype: str
    view: View
    steps: list[TensorStep] = field(default_factory=list)
    uses: tuple[str, ...] = ()

    def done(self, key: str) -> Expected:
        """The finished record."""
        return Expected(key=key, base=self.base, source=self.source, dtype=self.dtype, view=self.view,
                        steps=tuple(sorted(self.steps, key=lambda step: (step.rows, step.columns))), uses=self.uses)  # fmt: skip


class Derivation:
    """One reading over one base. `found`: the keys that the merged folder has; they decide only between two names for one
    new tensor."""

    def __init__(
        self, reading: AdapterReading, names: ParameterNames, config: Json, merged_keys: Collection[str]
    ) -> None:
        self.reading = reading
        self.names = names
        self.config = config
        self.merged_keys = merged_keys
        self.problems: list[str] = []
        self.declared: list[Declared] = []
        self.new: dict[str, WholeTensor] = {}  # parameters that the base has not, or has in another shape
        self.idle: set[str] = set()  # adapter tensors of modules that the model has not, and whose product is zero
        self.repeated: frozenset[str] = frozenset()  # adapter tensors that only repeat others
        self.per_depth: set[str] = set()  # keys of a block that the base stores once, at its other depths
        self.changes: Changes = {}  # by the model's own names, where it has one; what is tied shares them
        self.replicas = ReplicatedLayers.of(reading.replication, names)
        self.main = names.base.main
        self.drafts = self._start()

    def _start(self) -> dict[str, TensorDraft]:
        """Every base key as it is; a layer's as often as it is replicated."""
        tensors = self.names.base.tensors
        drafts = {}
        for key, origin in self.replicas.keys(tensors):
            ref = tensors[origin]
            drafts[key] = TensorDraft(base=ref, source=ref, dtype=ref.dtype, view=view_of(ref.stored.shape))
        self.declared += self.replicas.declare(self.config)
        self.problems += self.replicas.problems
        return drafts

    def run(self) -> dict[str, Expected]:
        """Place every change. What cannot be placed is in `problems`."""
        changes = self.reading.changes
        self.names.resolve_prefix([self.replicas.original(name) for name in changes])
        own = {name: parameter for name in changes if (parameter := self._own(name))}
        ties = tie(self.names, own, self.reading)
        self.problems += ties.problems
        self.repeated, self.changes = ties.repeated, ties.changes
        back = {parameter: name for name, parameter in own.items()}
        for parameter, several in ties.changes.items():
            self._apply_all(back.get(parameter, parameter), parameter, several, ties)
        self._loosen(ties)
        self.problems += self._unsaved()
        return {key: draft.done(key) for key, draft in self.drafts.items()}

    def _own(self, name: str) -> str | None:
        located = self.names.locate(self.replicas.original(name))
        if isinstance(located, Located):
            return self.replicas.with_number(located.parameter, name) if located.parameter else None
        return self.names.is_new(self.replicas.original(name))

    # --- one parameter --------------------------------------------------------------------------------------------------

    def _apply_all(self, name: str, parameter: str, several: tuple[Change, ...], ties: Ties) -> None:
        """All changes of one parameter: first what stands for its numbers, then what is added to them."""
        located = self.names.locate(self.replicas.original(name))
        group = ties.of.get(parameter, ())
        if located is None and group:
            located = self._follow(name, parameter, group, group in ties.loose)
            if located is None:
                return  # it stays tied to a tensor that takes the same changes under its own name
        try:
            for change in sorted(several, key=_order):
                located = self._apply(name, located, change)
        except Misplaced as wrong:
            self.problems.append(str(wrong))

    def _apply(self, name: str, located: Located | str | None, change: Change) -> Located | str | None:
        if isinstance(located, str):
            raise Misplaced(located)
        if isinstance(change, WholeTensor):
            return self._whole(name, located, change)
        if located is None and isinstance(change, LowRank) and _is_zero(change.b):
            self.idle |= set(change.uses)  # it adds nothing, wherever it was
            return located
        if located is None:
            raise Misplaced(self._unplaced(change.module))
        keys = {block.key for block in located.symbolic.blocks}
        stored = {key: self.drafts[self.replicas.with_number(key, name)].source.stored.shape for key in keys}
        for key, step, view in self._steps(change, located, stored):
            self._add(self.replicas.with_number(key, name), step, view)
        return located

    def _steps(
        self, change: Change, located: Located, stored: dict[str, tuple[int, ...]]
    ) -> Iterable[tuple[str, TensorStep, View]]:
        match change:
            case LowRank():
                yield from place_low_rank(change, located, stored, self._transposed(change, located))
            case Shift():
                yield from place_shift(change, located, stored)
            case TokenRows():
                key = located.symbolic.plain or next(iter(stored))
                step, view = place_tokens(change, located, stored[key][0])
                yield key, step, view
            case ProbedParameter():
                yield place_probed(change, located, stored)
            case _:
                yield from place_whole(change, located, stored)

    def _transposed(self, change: LowRank, located: Located) -> bool:
        """Without a model: the shapes say it; of a square one the family."""
        if located.module is not None or len(located.symbolic.shape) != 2 or self.names.skeletons:
            return False
        straight = (change.b.stored.shape[0], change.a.stored.shape[1])
        shape = tuple(located.symbolic.shape)
        return shape != straight or (straight[0] == straight[1] and self.names.transposed)

    def _add(self, key: str, step: TensorStep, view: View) -> None:
        draft = self.drafts[key]
        if draft.source.stored.dtype not in FLOATS:
            raise Misplaced(f"{step.module} changes {key}, which is stored as {draft.source.stored.dtype}.")
        for other in draft.steps:
            if _meet(step.lines, other.lines) and _overlap(step.columns, other.columns):
                raise Misplaced(f"{step.module} and {other.module} both change {key}.")
        draft.steps.append(step)
        draft.view = view

    def _whole(self, name: str, located: Located | None, change: WholeTensor) -> Located:
        """The adapter's tensor in place of the base's, or under a key of its own."""
        shape = change.values.stored.shape
        if located is None:
            return self._fresh(name, change)
        key = located.symbolic.plain
        if key is None:
            stored = {block.key: self.names.stored[block.key] for block in located.symbolic.blocks}
            for block_key, step, view in place_whole(change, located, stored):
                self._add(self.replicas.with_number(block_key, name), step, view)
            return located
        draft = self.drafts[self.replicas.with_number(key, name)]
        before = draft.source.stored.shape
        if shape != before:
            self._resize(located, change, before)
            located = Located(
                name=name, symbolic=SymbolicTensor.whole(key, shape), parameter=located.parameter, module=located.module
            )
        draft.source, draft.view = change.values, view_of(shape)
        draft.uses = tuple(dict.fromkeys((*draft.uses, *change.uses)))
        return located

    def _fresh(self, name: str, change: WholeTensor) -> Located:
        parameter = self.names.is_new(name)
        if parameter is None:
            raise Misplaced(self._unplaced(name))
        self.new[parameter] = change
        key, shape = self._new_key(parameter), change.values.stored.shape
        dtype = self.main if change.values.stored.dtype in FLOATS else change.values.stored.dtype
        self.drafts[key] = TensorDraft(
            base=None, source=change.values, dtype=dtype, view=view_of(shape), uses=change.uses
        )
        return Located(name=name, symbolic=SymbolicTensor.whole(key, shape), parameter=parameter, module=None)

    def _resize(self, located: Located, change: WholeTensor, before: tuple[int, ...]) -> None:
        """Another number of rows: of the vocabulary, or of a head's labels; anything else does not fit."""
        skeleton, shape, parameter = self.names.skeleton, change.values.stored.shape, located.parameter
        if skeleton is None or parameter is None or shape[1:] != before[1:]:
            raise Misplaced(f"{change.module}: {shape} does not fit {located.name} of {before}.")
        if parameter in (skeleton.embedding, skeleton.head) and skeleton.embedding:
            resized = config_changes.resized(self.config, before[0], shape[0])
            self.declared += [change_of_config for change_of_config in resized if change_of_config not in self.declared]
        else:
            self.new[parameter] = change

    def _unsaved(self) -> list[str]:
        """Modules that the config says are saved whole, and that the adapter does not have."""
        saved = {
            change.module
            for several in self.reading.changes.values()
            for change in several
            if isinstance(change, WholeTensor)
        }
        asked = [str(name) for name in self.reading.config.get("modules_to_save") or () if not self.reading.follows]
        modules = [module for skeleton in self.names.skeletons for module in skeleton.modules]
        return [
            f"The adapter should save {name}, and has no tensor of it."
            for name in asked
            if any(module.endswith(name) for module in modules)
            and not any(f".{module}.".find(f"{name}.") >= 0 for module in saved)
        ]

    # --- tied weights ---------------------------------------------------------------------------------------------------

    def _follow(self, name: str, parameter: str, group: tuple[str, ...], loose: bool) -> Located | None:
        """A tied parameter that is not stored: it gets a tensor of its own where its group comes apart, else None."""
        if not loose:
            return None
        skeleton = self.names.skeleton
        key, source = self._new_key(parameter), self._held(group)
        if source is None or skeleton is None:
            return None
        if at_several_depths(group):
            self.per_depth.add(key)
        if key not in self.drafts:
            self.drafts[key] = TensorDraft(
                base=None, source=source, dtype=source.dtype, view=view_of(source.stored.shape)
            )
        symbolic = SymbolicTensor.whole(key, self.drafts[key].source.stored.shape)
        return Located(name=name, symbolic=symbolic, parameter=parameter, module=skeleton.owner(parameter))

    def _held(self, group: tuple[str, ...]) -> TensorRef | None:
        """The base's numbers for a group: the tensor that the base holds for one of its members."""
        skeleton, tensors = self.names.skeleton, self.names.base.tensors
        keys = [skeleton.key_of[parameter] for parameter in group if parameter in skeleton.key_of] if skeleton else []
        return tensors[keys[0]] if keys else None

    def _loosen(self, ties: Ties) -> None:
        """Once the config ties nothing, every member of every group is loaded from a tensor of its own; while it does, every
        member of a group that comes apart."""
        for group in dict.fromkeys(ties.of.values()):
            for parameter in group if ties.unties or group in ties.loose else ():
                if self.names.skeleton and parameter not in self.names.skeleton.symbolic:
                    self._follow(parameter, parameter, group, loose=True)
        if ties.unties:
            self.declared += config_changes.untied(self.config)

    # --- keys -----------------------------------------------------------------------------------------------------------

    def _new_key(self, parameter: str) -> str:
        names = self.names.skeleton.stored_names(parameter) if self.names.skeleton else ()
        names = names or (parameter,)
        return next((key for key in names if key in self.merged_keys and key not in self.names.base.tensors), names[0])

    def _unplaced(self, module: str) -> str:
        problem = self.names.problem
        return f"{module} names no weight of the base" + (f": {problem}." if problem else ".")


def _is_zero(ref: TensorRef) -> bool:
    from bot.checks.reading.rows import Opened

    with Opened() as opened:
        return not bool(opened.wide_rows(ref, 0, ref.stored.shape[0] if ref.stored.shape else 1).any())


def _order(change: Change) -> int:
    """Copies of the base's own numbers, then whole replacements, then what is added."""
    return (0 if change.shared else 1) if isinstance(change, WholeTensor) else 2


def _meet(rows: range, other: range) -> bool:
    """Whether some row is in both."""
    if rows.step == other.step == 1:
        return _overlap((rows.start, rows.stop), (other.start, other.stop))
    return any(row in other for row in rows)


def _overlap(span: tuple[int, int], other: tuple[int, int]) -> bool:
    return span[0] < other[1] and other[0] < span[1]
