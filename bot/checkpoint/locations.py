"""From a parameter, as an adapter names it, to where its numbers lie in the checkpoint. No model code runs.

An adapter names parameters as transformers did when it was trained; a checkpoint keeps the names that it was published
with. Both are converted by transformers' own load-time rules (conversions.py) to the names of transformers 5, and matched
there. A parameter without a match is missing, and one with two matches is refused; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from types import MappingProxyType
from typing import NamedTuple

from bot.checkpoint.conversions import Converter
from bot.checkpoint.families import Language, ModelFamily, family_of, path_of_class, star
from bot.checkpoint.layouts import ModelSizes, Span, TileLayout, Unmergeable, convert, whole
from bot.checkpoint.prefixes import Ambiguous, Base, Naming, Reached, resolve_prefix
from bot.checkpoint.rectangles import (
    MatrixForm,
    Placement,
    Rectangle,
    placement_of,
    placement_of_part,
    placement_within,
    whole_placement,
)
from bot.records import Json, Stored

SHARED = re.compile(r"(?:.*\.)?layers\.(\d{1,6})\.self_attn\.[kv]_(?:proj|norm)(?:\.linear)?\.weight")

__all__ = ["Ambiguous", "Locations", "Names", "Placement", "Rectangle", "Span"]


@dataclass(frozen=True, kw_only=True)
class Locations:
    """`placements`: for the parameters that have one. `missing`: those that the base does not have. `unmergeable`:
    parameters that the base has in an order that no rectangle describes, each with a sentence that says so."""

    placements: dict[str, Placement]
    missing: tuple[str, ...]
    unmergeable: dict[str, str]


class SourceTensor(NamedTuple):
    """A checkpoint tensor on its way into a parameter: as source `slot` of a converter, for its target `chosen`."""

    key: str
    slot: int
    expert: int | None
    chosen: int
    converter: Converter | None


class Names:
    """The names of one base: its tensors by key, and its config.json. `trained`: the class of model whose names an adapter
    has, where it says so; a class that one part of the model is of makes them that part's own."""

    def __init__(self, stored: Mapping[str, Stored], config: Json, trained: str | None = None) -> None:
        self._stored = stored
        self._config = config
        self._family: ModelFamily = family_of(config)
        self._part = path_of_class(config, trained)
        self._placements: dict[str, Placement] = {}
        self._targets: dict[str, str] = {}  # the one v5 parameter that a name which was found leads to

    @cached_property
    def _sources(self) -> dict[str, list[SourceTensor]]:
        """Every v5 parameter that the checkpoint's keys lead to, and those keys."""
        sources: dict[str, list[SourceTensor]] = {}
        route = self._family.conversions.route
        for key in sorted(self._stored):  # GroupWeightRename depends on the order
            targets, converter, slot, expert = route(key)
            for chosen, target in enumerate(targets):
                sources.setdefault(target, []).append(SourceTensor(key, slot, expert, chosen, converter))
        return sources

    # --- parameters ------------------------------------------------------------------------------------------------

    def find(self, parameters: Sequence[str], sizes: Mapping[str, tuple[int, int]] = MappingProxyType({})) -> Locations:
        """Where every parameter lies. One prefix rule serves them all, and one of these naming schemes: the
        checkpoint's own, transformers 5's, transformers 4's, those of a language model that stands in a larger one.
        `sizes`: of the adapter's matrices, by parameter; only where two prefixes fit do they matter. Raises
        Ambiguous(key, key)."""
        chosen = resolve_prefix(self._prefix_base(sizes), parameters)
        placements: dict[str, Placement] = {}
        unmergeable: dict[str, str] = {}
        for name in parameters:
            reached = chosen.reached.get(name)
            if reached is None:
                continue
            if chosen.naming_scheme and len(reached) == 1:
                self._targets[name] = reached[0]
            try:
                placements[name] = self._placement(name, chosen.naming_scheme, reached)
            except Unmergeable as reason:
                unmergeable[name] = str(reason)
        missing = tuple(name for name in parameters if name not in placements and name not in unmergeable)
        return Locations(placements=placements, missing=missing, unmergeable=unmergeable)

    def at(self, key: str) -> Placement | None:
        """Where a checkpoint tensor lies that is asked for by its own key; None where the base has none, or no rectangles."""
        try:
            return self._placement_of_key(key, key) if key in self._stored else None
        except Unmergeable:
            return None

    def modules(self) -> list[str]:
        """Every module that has a weight, as transformers 5 names it."""
        names = {self._family.conversions.route(key).targets[0] for key in self._stored if key.endswith(".weight")}
        return sorted(name.removesuffix(".weight") for name in names if name.endswith(".weight"))

    def beside(self, weight: Placement | None, other: str) -> Placement | None:
        """Where another parameter of a layer lies (`bias`), by the placement of its weight; None where the base has none."""
        if weight is None or weight.experts != 1:
            return None
        if weight.key is not None:
            key = f"{weight.key.removesuffix('.weight')}.{other}"
            return self.at(key)
        target = f"{self._targets.get(weight.parameter, '').removesuffix('.weight')}.{other}"
        try:
            return replace(self._placement_of_v5(target), parameter=target) if target in self._sources else None
        except Unmergeable:
            return None

    def expert_parameters(self, module: str) -> tuple[str, ...]:
        """The stacked parameters of a v5 expert module, in named_parameters() order; () for any other module."""
        candidates = [module, self._family.conversions.route(f"{module}.weight").targets[0].removesuffix(".weight")]
        for candidate in candidates:
            if stack := self._family.stack(candidate):
                return stack[1]
        tail = star(module).split(".")[-2:]
        alike = {tuple(row[1]) for path, row in self._family.experts.items() if path.split(".")[-2:] == tail}
        return alike.pop() if len(alike) == 1 else ()

    def is_never_called(self, parameter: str) -> bool:
        """Whether a parameter is the k or v of a layer that takes those of an earlier one (num_kv_shared_layers): an older
        transformers made these modules and never called them, today's does not make them."""
        text = self._config.get("text_config")
        config = text if isinstance(text, dict) else self._config
        layers, shared = (config.get(name) for name in ("num_hidden_layers", "num_kv_shared_layers"))
        layer = SHARED.fullmatch(parameter)
        if layer is None or type(layers) is not int or type(shared) is not int:
            return False
        return layers - shared <= int(layer[1]) < layers

    def names_of_one(self, parameter: str) -> frozenset[str]:
        """The names (numbers as `*`) of a weight that has several, which the model ties together; none for any other."""
        inside = f"{self._part}.{parameter}" if self._part is not None else parameter
        return self._family.names_of_one(parameter) or self._family.names_of_one(inside)

    # --- embeddings ------------------------------------------------------------------------------------------------

    @cached_property
    def head(self) -> str | None:
        """The checkpoint key of the output embedding: the one it has, or the one it would have if it were not tied."""
        return self._key_for(self._family.head, self._family.saved_head)

    @cached_property
    def embedding(self) -> str | None:
        """The checkpoint key of the input embedding."""
        return self._key_for(self._family.embedding, self._family.saved_embedding)

    @property
    def tied(self) -> bool:
        """Whether transformers ties the head to the embedding, unless the checkpoint stores both with other values."""
        return self._family.tied

    @property
    def scaled_by_tying(self) -> bool:
        """Whether the architecture's forward scales by the tie flag (the t5 family), so that it cannot be untied."""
        return self._family.scaled_by_tying

    def _key_for(self, name: str | None, saved: str | None) -> str | None:
        if name is None:
            return None
        for spelled in (name, f"{self._family.prefix}.{name}", name.removeprefix(f"{self._family.prefix}.")):
            if spelled in self._sources:
                return self._sources[spelled][0].key
        return name if saved is None or self._has_new_names() else saved

    def _has_new_names(self) -> bool:
        """Whether the checkpoint has transformers 5's names where the published ones would differ from them."""
        known, saved = self._family.embedding, self._family.saved_embedding
        return bool(known and saved and known != saved and known in self._stored)

    # --- placements ------------------------------------------------------------------------------------------------

    def _own(self, parameters: Sequence[str]) -> Naming:
        return {name: (name,) for name in parameters}, self._stored.keys()

    def _new(self, parameters: Sequence[str]) -> Naming:
        return {name: (name,) for name in parameters}, self._sources.keys()

    def _old(self, parameters: Sequence[str]) -> Naming:
        route = self._family.conversions.route
        return {name: route(name).targets for name in parameters}, self._sources.keys()

    def _prefix_base(self, sizes: Mapping[str, tuple[int, int]]) -> Base:
        def misfits(scheme: int, reached: Reached) -> int:
            return sum(self._is_misfit(scheme, names, sizes.get(parameter)) for parameter, names in reached.items())

        parts = [partial(self._inside, language) for language in self._parts]
        stated = len(self._schemes) if self._part is not None else None
        return Base(self._schemes, parts, self._keys_of, misfits, stated)

    @cached_property
    def _parts(self) -> tuple[Language, ...]:
        """Parts whose own names an adapter may have: the one that it says it was trained on, then the language models."""
        stated = () if self._part is None else (Language(path=self._part, alone=(), head=""),)
        return (*stated, *self._family.languages)

    @property
    def _schemes(self) -> tuple[Callable[[Sequence[str]], Naming], ...]:
        return self._own, self._new, self._old

    def _is_misfit(self, scheme: int, reached: tuple[str, ...], size: tuple[int, int] | None) -> bool:
        """Whether a parameter that is stored as one tensor has another size, read in either direction."""
        keys = self._keys_of(scheme, reached)
        converted = scheme > 0 and any(
            source.converter for target in reached for source in self._sources.get(target, ())
        )
        if size is None or len(keys) != 1 or converted:
            return False
        shape = self._stored[keys[0]].shape
        return sorted((prod(shape[:1]), prod(shape[1:]))) != sorted(size)

    def _inside(self, language: Language, parameters: Sequence[str]) -> Naming:
        return {name: self._inner(language, name) for name in parameters}, self._sources.keys()

    def _inner(self, language: Language, name: str) -> tuple[str, ...]:
        """The v5 parameters that a language model's own text-only class means by a name; its head is the whole model's."""
        if name == language.head and self._family.head:
            return (self._family.head,)
        full = self._full(language, name)
        return (full,) if full in self._sources else self._family.conversions.route(full).targets

    @staticmethod
    def _full(language: Language, name: str) -> str:
        front = next((f"{path}." for path in language.alone if name.startswith(f"{path}.")), "")
        return f"{language.path}.{name.removeprefix(front)}"

    def _keys_of(self, scheme: int, reached: tuple[str, ...]) -> tuple[str, ...]:
        if scheme == 0:
            return reached
        return tuple(source.key for target in reached for source in self._sources.get(target, ()))

    def _placement(self, name: str, scheme: int, reached: tuple[str, ...]) -> Placement:
        """`reached`: the checkpoint key (scheme 0) or the v5 parameters (else) that a name leads to. Raises Unmergeable."""
        if scheme == 0:
            return self._placement_of_key(name, reached[0])
        if scheme == 1:
            return replace(self._placement_of_v5(reached[0]), parameter=name)
        full = name
        if scheme >= len(self._schemes):
            full = self._full(self._parts[scheme - len(self._schemes)], name)
            if reached in ((full,), (self._family.head,)):
                return replace(self._placement_of_v5(reached[0]), parameter=name)
        route = self._family.conversions.route(full)
        return replace(placement_of_part(route, [self._placement_of_v5(target) for target in reached]), parameter=name)

    def _placement_of_key(self, name: str, key: str) -> Placement:
        """A checkpoint tensor under its own name: the logical matrices are those that it has in transformers 5."""
        stored = self._stored[key]
        if self._own_are_plain and len(stored.shape) < 3:
            return whole_placement(name, stored, transposed=False)
        route = self._family.conversions.route(key)
        target = route.targets[0]
        if len(stored.shape) == 3 and self._matrix_form(target).stacked:
            return replace(placement_within(key, self._placement_of_v5(target)), parameter=name)
        if route.converter is not None and target == key:
            return replace(self._placement_of_v5(target), parameter=name)
        return whole_placement(name, stored, transposed=self._family.is_conv1d(target))

    @cached_property
    def _own_are_plain(self) -> bool:
        """Whether no matrix under its own name is anything but out × in: no Conv1D, and no conversion in place."""
        return not self._family.conv1d and not self._family.conversions.in_place

    def _placement_of_v5(self, target: str) -> Placement:
        if target not in self._placements:
            layout = self._layout(target)
            self._placements[target] = placement_of(target, layout, self._matrix_form(target), self._stored)
        return self._placements[target]

    def _layout(self, target: str) -> TileLayout:
        sources = self._sources[target]
        converter = sources[0].converter
        if converter is None:
            if len(sources) > 1:
                raise Unmergeable(f"The base has {len(sources)} tensors for {target}, e.g. {sources[1].key}.")
            return whole(self._stored[sources[0].key])
        by_index: dict[int, list[SourceTensor]] = {}
        for source in sources:
            if source.converter is not converter:
                raise Unmergeable(f"The base's tensors for {target} are of two layouts, e.g. {source.key}.")
            by_index.setdefault(source.slot, []).append(source)
        layouts = {}
        for index, members in by_index.items():
            members.sort(key=lambda source: source.expert or 0)
            numbers = [source.expert for source in members]
            if len(members) > 1 and numbers != list(range(len(members))):
                raise Unmergeable(f"The experts that make up {target} are not numbered from 0 without gaps.")
            layouts[index] = [whole(self._stored[source.key]) for source in members]
        return convert(converter, layouts, sources[0].chosen, target, ModelSizes(self._config, target, self._shape))

    def _shape(self, target: str) -> tuple[int, ...] | None:
        return self._layout(target).shape if target in self._sources else None

    def _matrix_form(self, target: str) -> MatrixForm:
        """How PEFT sees a v5 parameter: as stacked matrices, as a Conv1D's in × out, or as an ordinary out × in."""
        module, _, leaf = target.rpartition(".")
        stack = self._family.stack(module)
        if stack is not None and leaf in stack[1]:
            return MatrixForm(stacked=True, transposed=stack[0])
        if stack is None and module.endswith("experts") and not leaf.endswith("bias"):
            return MatrixForm(stacked=True, transposed=False)
        return MatrixForm(stacked=False, transposed=self._family.is_conv1d(target))
