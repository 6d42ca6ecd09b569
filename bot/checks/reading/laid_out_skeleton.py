"""What a skeleton says of a model whose layout is known, without building it: experts, vision towers, Conv1D. No torch is needed.

model_layouts.json has such classes; tools/make_model_layouts.py writes it, from the skeletons themselves. Unlike a plain model's,
the parameters are not known beforehand, as layers may differ: they are what the checkpoint holds, each under a key that the class
has. Whatever goes beyond it (another key, a name that is not stored, a switch turned over, a convolution that is adapted) raises
NotPlain: then the model is built after all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Mapping
from functools import cached_property
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from bot.checks.reading.plain_skeleton import NotPlain, PlainModule, modules_of
from bot.checks.reading.symbolic import SymbolicTensor, cat, stack
from bot.records import Json

ROWS = Path(__file__).with_name("model_layouts.json")
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
FLAG, TEXT = "tie_word_embeddings", "text_config"
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
        row = json.loads(ROWS.read_bytes())["classes"].get(name)
        if row is None or config.get("model_type") != row["type"]:
            raise NotPlain(name)
        if row["flat"] and TEXT not in config:
            config = {**config, TEXT: {**config, "model_type": row["types"][TEXT]}}
            flags = [config.get(FLAG), None]
        else:
            flags = [config.get(FLAG), at_path(config, f"{TEXT}.{FLAG}")]
        for section, kind in row["types"].items():
            if at_path(config, f"{section}.model_type") != kind:
                raise NotPlain(f"{name}: {section}")
        for switch, default in row["switches"].items():
            if at_path(config, switch, default) != default:
                raise NotPlain(f"{name}: {switch}")
        ties = row["ties"].get(json.dumps(flags))
        if ties is None:
            raise NotPlain(f"{name}: {FLAG}")
        self._row, self._config, self.shapes, self._beside = row, config, shapes, beside
        self.tied: dict[str, str] = dict(row["tied"]) if ties else {}
        self.embedding: str | None = row["embedding"]
        self.head: str | None = row["head"]
        self._parameter_of, self._of_experts = self._sorted_keys()

    def _sorted_keys(self) -> tuple[dict[str, str], dict[str, dict[str, tuple[int, ...]]]]:
        """({stored key: the parameter that it is}, {parameter: the keys of its experts, with their shapes})."""
        parts = {key: name for name, stacked in self._row["stacks"].items() for key in stacked["parts"]}
        plain: dict[str, str] = {}
        stacks: dict[str, dict[str, tuple[int, ...]]] = {}
        for key, shape in self.shapes.items():
            pattern = NUMBER.sub("*", key)
            if pattern in parts:
                self._require_counted(key)
                name = _numbered(parts[pattern], key)
                stacks.setdefault(name, {})[key] = shape
                continue
            known = self._row["keys"].get(pattern) or self._known_pattern(pattern)
            if known is None:
                if self._row["prefix"] is None or key not in self._beside:
                    raise NotPlain(key)
                continue
            self._require_counted(key)
            name = _numbered(known, key)
            if name in plain.values():
                raise NotPlain(key)
            plain[key] = name
            if pattern in self._row["keys"] and self._row["keys"][pattern] in self._row["particular"]:
                continue  # a part of a parameter, in a layout of its own
            if self._row["parameters"].get(NUMBER.sub("*", name)) != len(shape):
                raise NotPlain(key)
        return plain, stacks

    def _known_pattern(self, pattern: str) -> str | None:
        """A parameter's name as a pattern, for a key that is that, with the base model's prefix or without it."""
        prefix = f"{self._row['prefix']}." if self._row["prefix"] else ""
        stored_otherwise = set(self._row["keys"].values())
        known = self._row["parameters"].keys() - stored_otherwise - self._row["stacks"].keys()
        for name in (pattern, f"{prefix}{pattern}", pattern.removeprefix(prefix)):
            if name in known:
                return name
        return None

    def _require_counted(self, key: str) -> None:
        """Every number of a key is below what the config says there are."""
        for match in NUMBER.finditer(key):
            if int(match[0]) >= self._count(NUMBER.sub("*", key[: match.end()])):
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
        counts = {at_path(self._config, name) for name in setting.split("|")} - {None}
        if len(counts) != 1 or type(count := counts.pop()) is not int:
            raise NotPlain(setting)
        return count

    @cached_property
    def symbolic(self) -> dict[str, SymbolicTensor]:
        """{parameter: the stored boxes it is}. Raises NotPlain where some experts are missing."""
        special = set(self._row["particular"])
        whole = {name: SymbolicTensor.whole(key, self.shapes[key]) for key, name in self._parameter_of.items()
                 if NUMBER.sub("*", name) not in special}  # fmt: skip
        for name, shapes in self._of_experts.items():
            made = experts_of(self._row["stacks"][NUMBER.sub("*", name)], name, shapes)
            if made is None or len(shapes) != self._experts(name) * len(
                self._row["stacks"][NUMBER.sub("*", name)]["parts"]
            ):
                raise NotPlain(name)
            whole[name] = made
        return whole

    def _experts(self, name: str) -> int:
        """How many experts the config says that a parameter has."""
        part = self._row["stacks"][NUMBER.sub("*", name)]["parts"][0]
        return self._count(part[: part.rfind("*") + 1])

    @cached_property
    def known(self) -> dict[str, None]:
        """Every parameter's name that is stored, or tied to one that is, or a head's for some number of labels."""
        return dict.fromkeys([*self._parameter_of.values(), *self._of_experts, *self.tied, *self._row["labels"]])

    @cached_property
    def modules(self) -> dict[str, Any]:
        """Every module with a stored parameter in it or below it, by path."""
        return modules_of(self.known)

    @cached_property
    def feeds(self) -> dict[str, tuple[str, ...]]:
        """{stored key: the parameters that it goes into}."""
        whole: dict[str, tuple[str, ...]] = {key: (name,) for key, name in self._parameter_of.items()}
        return whole | {key: (name,) for name, keys in self._of_experts.items() for key in keys}

    @cached_property
    def key_of(self) -> dict[str, str]:
        """{parameter: key} for parameters that are stored as they are."""
        return {name: key for key, name in self._parameter_of.items() if name in self.symbolic}

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
        if name in self.elsewhere:
            return name, None
        raise NotPlain(name)

    def trace(self, name: str) -> tuple[SymbolicTensor, str | None] | None:
        """The stored boxes, and the model's own name or None; None where it is not stored. Raises NotPlain."""
        own, part = self.rename(name)
        if part is not None:
            return SymbolicTensor.whole(name, self.shapes[name]), None
        if own in self.symbolic:
            return self.symbolic[own], own
        if own in self._parameter_of.values():
            raise NotPlain(own)  # stored in a layout of its own
        return None

    def owner(self, parameter: str) -> Any:
        """The module that a parameter hangs on; None where there is none. Raises NotPlain where only the module itself can say
        what becomes of its parameter."""
        pattern = NUMBER.sub("*", parameter)
        if pattern in self._row["special"]:
            raise NotPlain(parameter)
        if parameter.rpartition(".")[0] not in self.modules:
            return None
        return KINDS[self._row["kinds"].get(pattern, "")]

    def parameters_of(self, module: str) -> tuple[str, ...]:
        """The names of a module's own parameters. Raises NotPlain for a module that has none, or some that are not stored."""
        pattern = NUMBER.sub("*", module)
        own = [name.removeprefix(f"{pattern}.") for name in self._row["parameters"]
               if name.rpartition(".")[0] == pattern and name not in self._row["silent"]]  # fmt: skip
        if not own or any(f"{module}.{name}" not in self.known for name in own):
            raise NotPlain(module)
        return tuple(own)

    def in_decoder(self, name: str) -> tuple[str, ...]:
        """None: a name that is not the model's own or a stored key's is left to the model."""
        return ()

    def stored_names(self, parameter: str) -> tuple[str, ...]:
        """The key that a checkpoint of this kind has for a parameter that this one does not hold."""
        pattern = NUMBER.sub("*", parameter)
        key = next((key for key, name in self._row["keys"].items() if name == pattern), pattern)
        if any(
            key != name for key, name in self._parameter_of.items() if NUMBER.sub("*", key) not in self._row["keys"]
        ):
            raise NotPlain(parameter)  # the base model's prefix is at play
        return (_numbered(key, parameter),)

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
        """Parameters that the model has and the checkpoint has not. Raises NotPlain where layers differ."""
        if not self._row["whole"]:
            raise NotPlain(self.name)
        asked = (pattern for pattern in self._row["parameters"] if pattern not in self._row["silent"])
        return [name for pattern in asked for name in self._expanded(pattern) if name not in self.symbolic
                and name not in self._parameter_of.values() and name not in self.tied]  # fmt: skip

    def _expanded(self, pattern: str) -> Iterator[str]:
        fronts = [pattern[: match.end()] for match in re.finditer(r"\*", pattern)]
        for numbers in product(*(range(self._count(front)) for front in fronts)):
            name = pattern
            for number in numbers:
                name = name.replace("*", str(number), 1)
            yield name


def class_for(task: str, config: Json) -> str | None:
    """transformers' class for a task (SEQ_CLS, TOKEN_CLS) with this config, where it has a row."""
    name: str | None = json.loads(ROWS.read_bytes())["tasks"].get(task, {}).get(str(config.get("model_type")))
    return name


def has_a_head(name: str) -> bool:
    """Whether a class with a row is one of those."""
    return any(name in classes.values() for classes in json.loads(ROWS.read_bytes())["tasks"].values())


def experts_of(stacked: Json, name: str, shapes: Shapes) -> SymbolicTensor | None:
    """A parameter that is made of one tensor for each expert and part: the experts stacked, the parts one after the other. None
    where these are not such tensors. `shapes`: of its keys."""
    parts = []
    for pattern in stacked["parts"]:
        keys = [_numbered(pattern, f"{name}.{expert}") for expert in range(len(shapes) // len(stacked["parts"]))]
        if not keys or any(shapes.get(key) != shapes.get(keys[0]) for key in keys) or len(shapes.get(keys[0], ())) != 2:
            return None
        parts.append(stack([SymbolicTensor.whole(key, shapes[key]) for key in keys]))
    if len({part.shape[2] for part in parts}) != 1:
        return None
    return cat(parts, stacked["along"]) if len(parts) > 1 else parts[0]


def _numbered(pattern: str, name: str) -> str:
    """The pattern with the numbers of a name, in their order."""
    for number in NUMBER.findall(name):
        pattern = pattern.replace("*", number, 1)
    return pattern


def at_path(config: Any, path: str, otherwise: Any = None) -> Any:
    """The value at a dotted path."""
    for part in path.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return otherwise
        config = config[part]
    return config
