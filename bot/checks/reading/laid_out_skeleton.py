"""What a skeleton says of a model whose layout is known, without building it: experts, vision towers, Conv1D. No torch is needed.

model_layouts.json has such classes; tools/make_model_layouts.py writes it, from the skeletons themselves. Unlike a plain model's,
the parameters are not known beforehand, as layers may differ: they are what the checkpoint holds, each under a key that the class
has. Whatever goes beyond it (another key, a name that is not stored, a switch turned over, a convolution that is adapted) raises
NotPlain: then the model is built after all.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from types import SimpleNamespace
from typing import Any, NoReturn

from bot.checks.reading.layout_rows import Patterns, at_path, config_for, filled, rows_of
from bot.checks.reading.plain_skeleton import NotPlain, PlainModule, modules_of
from bot.checks.reading.symbolic import SymbolicTensor, cat, stack
from bot.records import Json
from bot.untrusted.strict_json import MOST

Shapes = Mapping[str, tuple[int, ...]]


class Conv1D(PlainModule):
    """A Linear whose weight is stored in × out."""


KINDS: dict[str, Any] = {"": PlainModule(), "Conv1D": Conv1D(), "transposed": SimpleNamespace(is_transposed=True)}


class LaidOutSkeleton:
    """As Skeleton, for one class over one checkpoint. `shapes`: {stored key: shape}; `beside`: keys that may be none of its own,
    as they are another class's. Raises NotPlain for what is none."""

    decoder = None
    unfollowed: Mapping[str, str] = {}

    def __init__(self, name: str, config: Json, shapes: Shapes, beside: Container[str] = ()) -> None:
        self.name = name
        self.elsewhere: Container[str] = ()  # names of another class, which are none of this one's
        for row in rows_of(name):
            known = config_for(row, config)
            if known is not None:
                break
        else:
            raise NotPlain(name)
        self._row, self.shapes, self._beside = row, shapes, beside
        self._config: Json
        self._config, self.tied = known
        self._patterns = Patterns(row["literal"])
        self.embedding: str | None = row["embedding"]
        self.head: str | None = row["head"]
        self._parameter_of: dict[str, str] = {}  # by stored key
        self._in_own_layout: dict[str, tuple[str, ...]] = {}  # the parameters that a stored key goes into
        self._of_experts: dict[
            str, dict[str, tuple[int, ...]]
        ] = {}  # the keys of a parameter's experts, with their shapes
        self._sort_keys()

    def _sort_keys(self) -> None:
        """Each stored key to what it is. Raises NotPlain for one that the class has not."""
        parts = {key: name for name, stacked in self._row["stacks"].items() for key in stacked["parts"]}
        taken: set[str] = set()
        for key, shape in self.shapes.items():
            pattern = self._patterns.of(key)
            if pattern in parts:
                self._require_counted(key)
                name = self._patterns.filled(parts[pattern], key)
                self._of_experts.setdefault(name, {})[key] = shape
                continue
            known = self._known_patterns(pattern)
            if not known:
                if self._row["prefix"] is None or key not in self._beside:
                    raise NotPlain(key)
                continue
            self._require_counted(key)
            names = tuple(self._patterns.filled(each, key) for each in known)
            if known[0] in self._special_layout:
                self._in_own_layout[key] = names
                continue
            if names[0] in taken or self._row["parameters"].get(known[0]) != len(shape):
                raise NotPlain(key)
            self._parameter_of[key] = names[0]
            taken.add(names[0])

    @cached_property
    def _special_layout(self) -> frozenset[str]:
        return frozenset(self._row["particular"])

    @cached_property
    def _own_names(self) -> set[str]:
        """The patterns of parameters that may be stored under their own names."""
        names = set(self._row["parameters"]) - set(self._row["stacks"])
        renamed = {name for several in self._row["keys"].values() for name in _listed(several)}
        return names - (renamed & self._special_layout if self._row["both"] else renamed)

    def _about_prefix(self, name: str) -> tuple[str, ...]:
        """A name with the base model's prefix, and without it, where keys may have and lack it."""
        prefix = f"{self._row['prefix']}." if self._row["prefix"] else ""
        return tuple(dict.fromkeys((f"{prefix}{name}", name.removeprefix(prefix)))) if prefix else ()

    def _is_renamed(self, name: str) -> bool:
        """Whether a parameter's key is usually not its name."""
        return self._patterns.of(name) in self._row["keys"].values()

    def _known_patterns(self, pattern: str) -> tuple[str, ...]:
        """What a key goes into, as patterns: the parameters that have another name in a checkpoint, else the one of this name,
        with the base model's prefix or without it; () for a key that is none."""
        names = (pattern, *self._about_prefix(pattern))
        several = next((self._row["keys"][name] for name in names if name in self._row["keys"]), None)
        return _listed(several) if several else tuple(name for name in names if name in self._own_names)[:1]

    def _require_counted(self, key: str) -> None:
        """Every number of a key is below what the config says there are."""
        if any(number >= self._count(front) for front, number in self._patterns.fronts(key)):
            raise NotPlain(key)

    def _count(self, front: str) -> int:
        setting = self._row["counts"].get(front)
        if setting is None and self._row["prefix"]:
            prefix = f"{self._row['prefix']}."
            setting = self._row["counts"].get(f"{prefix}{front}", self._row["counts"].get(front.removeprefix(prefix)))
        if setting is None:
            raise NotPlain(front)
        if setting.isdigit():
            return int(setting)
        values = [at_path(self._config, name) for name in setting.split("|")]
        counts = [len(value) if isinstance(value, list) else value for value in values if value is not None]
        if (
            not counts
            or any(type(count) is not int or not 0 <= count <= MOST for count in counts)
            or len({*counts}) > 1
        ):
            raise NotPlain(setting)
        return int(counts[0])

    @cached_property
    def symbolic(self) -> dict[str, SymbolicTensor]:
        """{parameter: the stored boxes it is}. Raises NotPlain where some experts are missing."""
        whole = {name: SymbolicTensor.whole(key, self.shapes[key]) for key, name in self._parameter_of.items()}
        for name, shapes in self._of_experts.items():
            made = experts_of(self._row["stacks"][self._patterns.of(name)], self._patterns.numbers(name), shapes)
            if made is None or len(shapes) != self._experts(name) * len(
                self._row["stacks"][self._patterns.of(name)]["parts"]
            ):
                raise NotPlain(name)
            whole[name] = made
        return whole

    def _experts(self, name: str) -> int:
        """How many experts the config says that a parameter has."""
        part = self._row["stacks"][self._patterns.of(name)]["parts"][0]
        return self._count(part[: part.rfind("*") + 1])

    @cached_property
    def known(self) -> dict[str, None]:
        """Every parameter's name that is stored, or tied to one that is, or a head's for some number of labels."""
        apart = (name for names in self._in_own_layout.values() for name in names)
        names = [*self._parameter_of.values(), *apart, *self._of_experts, *self.tied, *self._row["labels"]]
        return dict.fromkeys(names)

    @cached_property
    def modules(self) -> dict[str, Any]:
        """Every module with a stored parameter in it or below it, by path."""
        return modules_of(self.known)

    @cached_property
    def feeds(self) -> dict[str, tuple[str, ...]]:
        """{stored key: the parameters that it goes into}."""
        whole: dict[str, tuple[str, ...]] = {key: (name,) for key, name in self._parameter_of.items()}
        return whole | self._in_own_layout | {key: (name,) for name, keys in self._of_experts.items() for key in keys}

    @cached_property
    def key_of(self) -> dict[str, str]:
        """{parameter: key} for parameters that are stored as they are."""
        return {name: key for key, name in self._parameter_of.items()}

    @cached_property
    def used(self) -> frozenset[str]:
        """Every stored key."""
        return frozenset(self.feeds)

    @property
    def model(self) -> NoReturn:
        """There is none."""
        raise NotPlain(self.name)

    def rename(self, name: str) -> tuple[str, str | None]:
        """The parameter that a name means, the model's own or a stored key's; and whether that is one of many that it is made
        from. Raises NotPlain for a name that is neither."""
        if name in self.known:
            return name, None
        if name in self._parameter_of:
            return self._parameter_of[name], None
        if name in self.feeds:
            return self.feeds[name][0], name
        for own in self._about_prefix(name):
            if own in self.known and (self._row["both"] or not self._is_renamed(own)):
                return own, None
        if name in self.elsewhere:
            return name, None
        raise NotPlain(name)

    def trace(self, name: str) -> tuple[SymbolicTensor, str | None] | None:
        """The stored boxes, and the model's own name or None; None where it is not stored. Raises NotPlain."""
        own, part = self.rename(name)
        if self._patterns.of(own) in self._special_layout:
            raise NotPlain(own)
        if part is not None:
            return SymbolicTensor.whole(name, self.shapes[name]), None
        return (self.symbolic[own], own) if own in self.symbolic else None

    def owner(self, parameter: str) -> Any:
        """The module that a parameter hangs on; None where there is none. Raises NotPlain where only the module itself can say
        what becomes of its parameter."""
        pattern = self._patterns.of(parameter)
        if pattern in self._row["special"]:
            raise NotPlain(parameter)
        if parameter.rpartition(".")[0] not in self.modules:
            return None
        return KINDS[self._row["kinds"].get(pattern, "")]

    def parameters_of(self, module: str) -> tuple[str, ...]:
        """The names of a module's own parameters. Raises NotPlain for a module that has none, or some that are not stored."""
        for name in (module, *self._about_prefix(module)[:1]):
            pattern = self._patterns.of(name)
            own = [each.removeprefix(f"{pattern}.") for each in self._row["parameters"]
                   if each.rpartition(".")[0] == pattern and each not in self._row["silent"]]  # fmt: skip
            if own and all(f"{name}.{each}" in self.known for each in own):
                return tuple(own)
        raise NotPlain(module)

    def in_decoder(self, name: str) -> tuple[str, ...]:
        """None: a name that is not the model's own or a stored key's is left to the model."""
        return ()

    def stored_names(self, parameter: str) -> tuple[str, ...]:
        """The key that a checkpoint of this kind has for a parameter that this one does not hold."""
        pattern = self._patterns.of(parameter)
        key = next((key for key, name in self._row["keys"].items() if name == pattern), pattern)
        if not all(self._has_its_usual_key(stored, name) for stored, name in self._parameter_of.items()):
            raise NotPlain(parameter)
        return (self._patterns.filled(key, parameter),)

    def _has_its_usual_key(self, stored: str, name: str) -> bool:
        """Whether a parameter is stored as this class is saved, or without the base model's prefix; not under today's name."""
        pattern, keys = self._patterns.of(stored), self._row["keys"]
        renamed = self._is_renamed(name)
        lacks = f"{self._row['prefix']}.{stored}" == name
        return (
            pattern in keys or f"{self._row['prefix']}.{pattern}" in keys or ((stored == name or lacks) and not renamed)
        )

    def part_of_class(self, stated: str) -> None:
        """None where an adapter says that it was trained on this very class. Raises NotPlain for another one."""
        if stated != self.name:
            raise NotPlain(stated)

    def fits(self, shapes: Shapes, labels: int) -> bool:
        """Whether parameters of a head have these shapes, with so many labels. Raises NotPlain for one that is none of a head's."""
        for name, shape in shapes.items():
            if name not in self._row["labels"]:
                raise NotPlain(name)
            axes = self._row["labels"][name]
            if shape != tuple(labels if axis == "labels" else at_path(self._config, axis) for axis in axes):
                return False
        return True

    def lacking(self) -> list[str]:
        """Parameters that the model has, as far as its row knows, and the checkpoint has not. Raises NotPlain where layers differ."""
        if self._row["members"] is None:
            raise NotPlain(self.name)
        asked = (pattern for pattern in self._row["parameters"] if pattern not in self._row["silent"])
        there = (
            self.symbolic.keys() | self.tied.keys() | {name for names in self._in_own_layout.values() for name in names}
        )
        return [name for pattern in asked for name in self._expanded(pattern) if name not in there]

    def _expanded(self, pattern: str) -> Iterator[str]:
        fronts = [pattern[: match.end()] for match in re.finditer(r"\*", pattern)]
        some = self._row["members"].get(pattern) or [None] * len(fronts)
        every = (range(self._count(front)) if few is None else few for front, few in zip(fronts, some, strict=True))
        for numbers in product(*every):
            yield filled(pattern, map(str, numbers))


def experts_of(stacked: Json, numbers: Sequence[str], shapes: Shapes) -> SymbolicTensor | None:
    """A parameter that is made of one tensor for each expert and part: the experts stacked, the parts one after the other. None
    where these are not such tensors. `numbers`: of its name; `shapes`: of its keys."""
    parts = []
    for pattern in stacked["parts"]:
        experts = range(len(shapes) // len(stacked["parts"]))
        keys = [filled(pattern, (*numbers, str(expert))) for expert in experts]
        if not keys or any(shapes.get(key) != shapes.get(keys[0]) for key in keys) or len(shapes.get(keys[0], ())) != 2:
            return None
        parts.append(stack([SymbolicTensor.whole(key, shapes[key]) for key in keys]))
    if len({part.shape[2] for part in parts}) != 1:
        return None
    return cat(parts, stacked["along"]) if len(parts) > 1 else parts[0]


def _listed(names: str | list[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
