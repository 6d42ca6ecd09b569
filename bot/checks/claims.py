"""What an adapter says should happen to which base key, read from its own files and by this verifier's own rules.

Nothing here is shared with the merger: it has its own names, its own scaling, and so its own mistakes.
To teach the verifier a further PEFT method, write a module like `lora` and add one line to METHODS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from bot.checks import lora
from bot.checks.case import read_json
from bot.checks.checkpoint import FLOATS, Checkpoint, Place
from bot.checks.naming import by_names
from bot.checks.skeleton import Skeleton, build_skeleton
from bot.checks.subject import Subject
from bot.checks.touch import Change, Reading, Touch
from bot.errors import Refused
from bot.records import Json
from bot.weights.headers import read_header

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# peft_type → how its config and tensors are read.
METHODS: dict[str, Callable[[Json, dict[str, Place]], Reading]] = {"LORA": lora.read}


@dataclass(frozen=True, kw_only=True)
class Claims:
    """`touches` by base key; `problems` are sentences about what this verifier cannot account for."""

    method: str
    tensors: int
    touches: dict[str, Touch] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_claims(subject: Subject, base: Checkpoint) -> Claims:
    """Raises Refused when the adapter cannot be read at all."""
    config, tensors = _read_adapter(subject)
    method = str(config.get("peft_type"))
    if method not in METHODS:
        return Claims(method=method, tensors=len(tensors), problems=(f"This verifier does not know {method}.",))
    reading = METHODS[method](config, tensors)
    placing = _Placing(subject, base, {*reading.changes, *reading.carried})
    touches, unplaced = placing.place(reading.changes)
    foreign = [said for module, place in reading.carried.items() if (said := placing.carried(module, place))]
    problems = (*reading.problems, *unplaced, *foreign)
    return Claims(method=reading.name, tensors=len(tensors), touches=touches, problems=problems)


def _read_adapter(subject: Subject) -> tuple[Json, dict[str, Place]]:
    config = read_json(subject.adapter / ADAPTER_CONFIG)
    weights = subject.adapter / ADAPTER_WEIGHTS
    if config is None or not weights.is_file():
        lacking = ADAPTER_WEIGHTS if config else ADAPTER_CONFIG
        raise Refused(f"The adapter has no readable {lacking}.", remedy="Name a PEFT adapter saved as safetensors.")
    return config, {stored.key: Place(path=weights, stored=stored) for stored in read_header(weights).tensors}


class _Placing:
    """Finds the base key and the orientation of every module; the model is built only when names do not decide."""

    def __init__(self, subject: Subject, base: Checkpoint, modules: set[str]) -> None:
        self.base = base
        self.skeleton = cache(lambda: _skeleton(subject, base))
        self._keys = by_names(modules, base.tensors)

    def place(self, changes: Mapping[str, Change]) -> tuple[dict[str, Touch], list[str]]:
        """Every change on its base key; two changes of one key, and changes without a key, are problems."""
        touches: dict[str, Touch] = {}
        problems = []
        for module, change in changes.items():
            key = self._key_of(module)
            found = self._touch(module, change, key) if key else self._unplaced(module)
            if isinstance(found, str):
                problems.append(found)
            elif found.key in touches:
                problems.append(f"{module} and {touches[found.key].module} both change {found.key}.")
            else:
                touches[found.key] = found
        return touches, problems

    def carried(self, module: str, copy: Place) -> str | None:
        """What is wrong with a base weight that the adapter brought along: it must be the base's."""
        from bot.checks.rows import same_values

        key = self._key_of(module)
        if key is None:
            return self._unplaced(module)
        if same_values(self.base.tensors[key], copy):
            return None
        return f"The adapter brings its own {key}, which differs from the base's; this verifier does not know that."

    def _key_of(self, module: str) -> str | None:
        """By names; else by the model's own module names; else (an adapter of older days) by the checkpoint's."""
        if self._keys is not None:
            return self._keys[module]
        own = f"{module}.weight"
        return self.skeleton().key_of.get(module) or (own if own in self.base.tensors else None)

    def _unplaced(self, module: str) -> str:
        skeleton = self.skeleton()
        if module in skeleton.fused:
            return f"{module} is stored in another layout as {skeleton.fused[module]}; this verifier does not know it."
        return f"{module} names no weight of the base" + (f": {skeleton.problem}." if skeleton.problem else ".")

    def _touch(self, module: str, change: Change, key: str) -> Touch | str:
        place = self.base.tensors[key]
        if place.stored.dtype not in FLOATS:
            return f"{module} changes {key}, which is stored as {place.stored.dtype}."
        straight, flipped = change.shapes()
        if place.stored.shape not in (straight, flipped):
            return f"{module} changes a weight of {straight}; {key} is {place.stored.shape}."
        if place.stored.shape != flipped:
            return change.on(place, transposed=False)
        # It fits the other way round, or (a square one) both ways: only the module knows, shapes must not guess.
        transposed = key in self.skeleton().in_by_out
        if not transposed and straight != flipped and not self.skeleton().problem:
            return (
                f"{module} changes a weight of {straight}; {key} is {place.stored.shape}, and its module is no Conv1D."
            )
        return change.on(place, transposed or straight != flipped)


def _skeleton(subject: Subject, base: Checkpoint) -> Skeleton:
    config = read_json(subject.base / "config.json") or {}
    return build_skeleton(subject.base, config, sorted(base.tensors), subject.trust_remote_code)
