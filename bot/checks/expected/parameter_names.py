"""Where each parameter that an adapter names is stored: by the model itself, else by names alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from bot.checks.expected.placement import Located
from bot.checks.reading.checkpoint import Checkpoint
from bot.checks.reading.laid_out_skeleton import LaidOutSkeleton
from bot.checks.reading.model_skeleton import IN_BY_OUT, Skeleton
from bot.checks.reading.plain_skeleton import PlainSkeleton
from bot.checks.reading.symbolic import SymbolicTensor
from bot.records import Json

WEIGHT = ".weight"
AnySkeleton = Skeleton | PlainSkeleton | LaidOutSkeleton
Shift = tuple[str, str]  # (what the checkpoint has in front, what the module has in front)


class ParameterNames:
    """One adapter's names over one base. `skeletons`: the base's class, then the one that the adapter was trained with.

    Without a skeleton (`problem` says why there is none) names and shapes have to do. `stated`: the class that the adapter says
    it was trained on; where that is a part of the base's model, its names are that part's.
    """

    def __init__(
        self,
        base: Checkpoint,
        config: Json,
        skeletons: tuple[AnySkeleton, ...],
        problem: str | None,
        stated: str | None = None,
    ) -> None:
        self.base = base
        self.config = config
        self.skeletons = skeletons
        self.problem = problem
        self.stored = {key: ref.stored.shape for key, ref in base.tensors.items()}
        self.transposed = not skeletons and config.get("model_type") in IN_BY_OUT
        self._shifted: Mapping[str, str] = {}
        self._inner: Mapping[str, str] = {}
        self.part = skeletons[0].part_of_class(stated) if skeletons and stated else None
        self._within = ""  # in front of every name, where the adapter's are a part's

    @property
    def skeleton(self) -> AnySkeleton | None:
        """The model that the merged weights are for: the last class, which has the adapter's heads."""
        return self.skeletons[-1] if self.skeletons else None

    @property
    def is_of_a_part(self) -> bool:
        """Whether the adapter was trained on a part of the model that has more than that and heads."""
        return self.part is not None and self.part != self.skeletons[0].model.base_model_prefix

    def resolve_prefix(self, parameters: list[str]) -> None:
        """The part that the adapter was trained on, where it has any of them. Else, where some parameter is found nowhere, one
        shift of names must explain the whole adapter: names of the language model alone, where all that is lost is in it, else
        a prefix."""
        self._inner, self._shifted, self._within = {}, {}, ""
        if self.part and any(self._direct(f"{self.part}.{name}") for name in parameters):
            self._within = f"{self.part}."
            return
        lost = [
            name
            for name in parameters
            if name.endswith(".weight") and self._direct(name) is None and not self.is_new(name)
        ]
        inner = {name: own for name in parameters if (own := self._in_decoder(name))}
        if lost and all(name in inner for name in lost) and not any(self._direct(name) for name in inner):
            self._inner = inner
        elif lost:
            modules = {name.removesuffix(".weight") for name in parameters if name.endswith(".weight")}
            keys = by_names(modules, self.stored) or {}
            self._shifted = {f"{module}.weight": key for module, key in keys.items()}

    def locate(self, name: str) -> Located | str | None:
        """The parameter; a sentence where it cannot be followed; None where there is none that is stored."""
        located = self._direct(self._inner.get(name, f"{self._within}{name}"))
        if located is None and name in self._shifted:
            key = self._shifted[name]
            return Located(name=name, symbolic=self._whole(key), parameter=None, module=self._module(key))
        return located

    def is_new(self, name: str) -> str | None:
        """The model's name for a parameter that the model has and the checkpoint has not."""
        name = f"{self._within}{name}"
        for skeleton in self.skeletons:
            own, pattern = (name, None) if name in skeleton.known else skeleton.rename(name)
            if (
                pattern is None
                and own in skeleton.known
                and own not in skeleton.symbolic
                and own not in skeleton.unfollowed
            ):
                return own
        return None

    def parameters_of(self, module: str) -> tuple[str, ...]:
        """A module's own parameters, in the order of registration."""
        inside = (f"{self.part}.{module}",) if self.part else ()
        several = (*inside, module, *(own for skeleton in self.skeletons for own in skeleton.in_decoder(module)))
        candidates = (skeleton.parameters_of(name) for name in several for skeleton in self.skeletons)
        return next(filter(None, candidates), ())

    def _in_decoder(self, name: str) -> str | None:
        """The model's name for a parameter that the adapter names as the language model alone does."""
        several = ((skeleton, own) for skeleton in self.skeletons for own in skeleton.in_decoder(name))
        return next((own for skeleton, own in several if isinstance(skeleton.trace(own), tuple)), None)

    def _direct(self, name: str) -> Located | str | None:
        for skeleton in self.skeletons:
            for asked in (name, _attention(skeleton, name)):
                trace = skeleton.trace(asked) if asked else None
                if isinstance(trace, str):
                    return f"{name}: {trace}."
                if trace is not None:
                    symbolic, own = trace
                    return Located(
                        name=name, symbolic=symbolic, parameter=own, module=skeleton.owner(own) if own else None
                    )
        if name in self.stored and not self.skeletons:
            return Located(name=name, symbolic=self._whole(name), parameter=None, module=None)
        return None

    def _whole(self, key: str) -> SymbolicTensor:
        return SymbolicTensor.whole(key, self.stored[key])

    def _module(self, key: str) -> Any:
        return next((skeleton.owner(fed[0]) for skeleton in self.skeletons if (fed := skeleton.feeds.get(key))), None)


def _attention(skeleton: AnySkeleton, name: str) -> str | None:
    """torch's own attention keeps its three projections in one parameter; PEFT treats it as the module's weight."""
    owner = skeleton.owner(name)
    if type(owner).__name__ == "MultiheadAttention" and name.endswith(".weight"):
        return name.removesuffix("weight") + "in_proj_weight"
    return None


def by_names(modules: Collection[str], keys: Iterable[str]) -> dict[str, str] | None:
    """{module: key} when exactly one shift explains all modules, else None. No shift at all is preferred.

    A checkpoint may carry a prefix that the model has not (`language_model.model.…`) or lack one that it has (gpt2's `h.0.…` for
    `transformer.h.0.…`). One prefix, added or dropped, must then explain every module of the adapter at once.
    """
    stems = {key.removesuffix(WEIGHT) for key in keys if key.endswith(WEIGHT)}
    if all(module in stems for module in modules):
        return {module: module + WEIGHT for module in modules}
    tails = _tails(stems, {module.rsplit(".", 1)[-1] for module in modules})
    common: set[Shift] | None = None
    for module in modules:
        shifts = _shifts(module, stems, tails)
        common = shifts if common is None else common & shifts
        if not common:
            return None
    if common is None or len(common) != 1:
        return None
    (shift,) = common
    return {module: _shifted(module, shift) + WEIGHT for module in modules}


def _tails(stems: Iterable[str], last_parts: set[str]) -> dict[str, list[str]]:
    """Every dotted tail of every stem that could be one of the modules → what stands before it."""
    tails: dict[str, list[str]] = {}
    for stem in stems:
        parts = stem.split(".")
        if parts[-1] not in last_parts:
            continue
        for cut in range(1, len(parts)):
            tails.setdefault(".".join(parts[cut:]), []).append(".".join(parts[:cut]) + ".")
    return tails


def _shifts(module: str, stems: set[str], tails: dict[str, list[str]]) -> set[Shift]:
    shifts: set[Shift] = {(front, "") for front in tails.get(module, ())}
    parts = module.split(".")
    for cut in range(len(parts)):
        if ".".join(parts[cut:]) in stems:
            shifts.add(("", ".".join(parts[:cut]) + "." if cut else ""))
    return shifts


def _shifted(module: str, shift: Shift) -> str:
    added, dropped = shift
    return added + module.removeprefix(dropped)
