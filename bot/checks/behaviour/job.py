"""What a worker of the full proof is asked, and what it answers: records, and their JSON in the files between the processes.

Both ends are the same version of this code, so that the files carry none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bot.records import Json

Role = Literal["reference", "merged", "joint", "comparison"]
LENGTH = 64  # tokens per text
QUESTIONS = (  # of a report's page
    "Write one sentence about the sea.",
    "What is two plus three?",
    "Name three colours.",
)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """One way to use base and adapter, to be measured. `folder`: the model to load; `merge`: the adapter is merged into it, to
    nearest; `requantize`: and then quantised (BitsAndBytesConfig's fields)."""

    id: str
    folder: Path
    merge: bool
    requantize: Json | None


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """`base` (as plain numbers), `adapter` and `folder` (the merged one) are resolved; the worker writes into `work` only.

    `storage`: torch's name of the dtype that the merge is rounded to; `compute`: of the one that models run in. `clamps`: as a
    Subject's. `cast_all`: the merge changes the dtype, so that every parameter is rounded; else only those in `whole`, which
    the adapter brings whole. `model_class`, `labels`, `vocabulary`: where they are not the base's own.
    `device`: where models run, as torch names it ("cpu", "cuda", "cuda:N"); `gpus`: the UUIDs of those that the worker sees
    ((): all), over which each model is spread where there are several.
    `same_form`: the base as it is stored, where the merged folder keeps its quantised form.
    `running`: whole models in memory, or layer by layer. `held`: the dtype that weights lie in memory in, where that is not the
    one of `compute`: of the role `joint` only (held_in_16_bits.py).
    `tokens`: of a prompt, at the most.
    `distrusted`: {folder: why its code is not run}. `thorough`: a large model too gets every control, and the nearest merge.
    `asks`: each model answers three prompts as well.
    """

    base: Path
    adapter: Path
    folder: Path
    work: Path
    storage: str
    compute: str
    role: Role = "reference"
    quantised: bool = False
    same_form: Path | None = None
    clamps: bool = False
    cast_all: bool = False
    whole: frozenset[str] = frozenset()
    text: Path | None = None
    trust: bool = False
    distrusted: Mapping[str, str] = field(default_factory=dict)
    model_class: str | None = None
    labels: int | None = None
    vocabulary: int | None = None
    usages: tuple[Usage, ...] | None = None
    prompts: int = 8
    draws: int = 8
    thorough: bool = False
    device: str = "cpu"
    gpus: tuple[str, ...] = ()
    asks: bool = False
    running: Literal["whole", "layers"] = "whole"
    held: Literal["", "bfloat16", "float16"] = ""
    tokens: int = LENGTH

    def with_more(self) -> WorkerJob:
        """The same with more prompts and more controls; what the models say is known by then."""
        return replace(self, prompts=32, tokens=LENGTH, draws=16, thorough=True, asks=False)

    @property
    def casts_more(self) -> bool:
        """Whether the merge changes numbers besides those that the adapter does."""
        return self.clamps or self.cast_all or bool(self.whole)

    @property
    def held_to(self) -> Literal["unmerged", "clamped"]:
        """What the base and the stand-ins are held to."""
        return "clamped" if self.clamps else "unmerged"

    def trusts(self, folder: Path) -> bool:
        """Whether a folder's own Python may run: it was allowed, and is the base's own."""
        return self.trust and str(folder) not in self.distrusted

    def write(self, path: Path) -> None:
        """As JSON, for `read`."""
        path.write_text(
            json.dumps(asdict(self), default=lambda value: [*value] if isinstance(value, frozenset) else str(value))
        )

    @classmethod
    def read(cls, path: Path) -> WorkerJob:
        """What `write` wrote."""
        return cls(**_fields(cls, json.loads(path.read_bytes())))


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Over one prompt. `far`: KL in nats or a squared error, by kind, in all and for each of its `tokens`; `size`: the wanted
    output's squared norm. `choices`: routers' choices that were held to the unmerged model's, and how many of them would
    have been others (`changed_choices`); `free`: calls of routers that could not be held."""

    far: float
    tokens: list[float]
    size: float
    positions: int
    agree: int
    choices: int
    changed_choices: int
    free: int


@dataclass(frozen=True, kw_only=True)
class ModuleDistance:
    """Over the probed prompts: how far what a module gives lies from what the unmerged model's gives, and the squared norm of that.
    `far` is a squared error."""

    module: str
    far: float
    size: float

    @property
    def relative(self) -> float:
        """‖h′ − h‖² / ‖h‖²."""
        return self.far / self.size if self.size else self.far


@dataclass(kw_only=True)
class OutputSums:
    """Over all prompts and texts. `loss`: −log p of each next token, in nats, over the `predicted` ones."""

    far: float = 0.0
    positions: int = 0
    agree: int = 0
    loss: float = 0.0
    predicted: int = 0


class CannotRun(Exception):
    """The unmerged model cannot be had in this installation, with its adapter or without: nothing is known of the merge."""


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """No answer: an `error`, or a known limit (a `skip`). `unrunnable`: of this installation, so that no merge is to blame; `raised`:
    an exception ended the role; `of_device`: it is the GPU that failed."""

    status: Literal["error", "skip"]
    why: str
    unrunnable: bool = False
    raised: bool = False
    of_device: bool = False


@dataclass(frozen=True, kw_only=True)
class Replies:
    """What a model answered to the fixed prompts, in their order; [] where it was not asked, and `why_not` where it should have
    been."""

    texts: list[str] = field(default_factory=list)
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class ReferenceAnswer:
    """How far the base, the exact merge, the nearest and each control lie from the unmerged model, prompt by prompt; None where
    that was not measured.

    `kind`: of the outputs ("kl" or "squared"). `layers`: the parameters that PEFT's layers change; `uncalled`: those of layers
    that were never called. `measured`: the sums of the unmerged model and of the base, where usages are compared.
    `device`: the name of what the models ran on. `base_prompts`: the numbers of those that the base was given; []: all.
    """

    kind: str
    thorough: bool
    mixture: bool
    layers: list[str]
    uncalled: list[str]
    base: list[Distance]
    controls: list[list[Distance]]
    exact: list[Distance] | None
    nearest: list[Distance] | None
    measured: dict[str, OutputSums]
    probe: list[ModuleDistance] = field(default_factory=list)
    base_prompts: list[int] = field(default_factory=list)
    device: str | None = None
    unmerged_replies: Replies = field(default_factory=Replies)
    base_replies: Replies = field(default_factory=Replies)


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What the loader said of the merged folder. `tokens`, `remarks`: see compare_tokenizers. `by_layers`: its keys were looked
    at, and the model was never loaded as a whole."""

    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    complaints: list[str]
    model_class: str
    tokenizer: str = "none"
    tokens: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    by_layers: bool = False


@dataclass(frozen=True, kw_only=True)
class MergedAnswer:
    """How the folder loads, and how far its model lies from the unmerged one; None where that was not measured. `probe`: how far
    its modules do. `device`: as the reference's."""

    loads: LoadReport
    distances: list[Distance] | None
    probe: list[ModuleDistance] = field(default_factory=list)
    device: str | None = None
    replies: Replies = field(default_factory=Replies)


@dataclass(frozen=True, kw_only=True)
class ComparisonAnswer:
    """What was measured of each usage, by its id; `replies`: of the result that is stored quantised."""

    measured: dict[str, OutputSums]
    replies: Replies = field(default_factory=Replies)


@dataclass(frozen=True, kw_only=True)
class JointAnswer:
    """Both in one process; `together`: in the same forward passes. `surprise`: what went wrong with that, if anything did."""

    reference: ReferenceAnswer | Stopped
    merged: MergedAnswer | Stopped
    together: bool = False
    surprise: str = ""


Answer = Stopped | ReferenceAnswer | MergedAnswer | JointAnswer | ComparisonAnswer
ANSWERS = {kind.__name__: kind for kind in (Stopped, ReferenceAnswer, MergedAnswer, JointAnswer, ComparisonAnswer)}


def write_answer(path: Path, answer: Answer, confined: bool) -> None:
    """Whole or not at all. `confined`: whether the system could confine the worker, where that was wanted."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps({"kind": type(answer).__name__, "confined": confined, "answer": asdict(answer)}))
    fresh.replace(path)


def read_answer(path: Path) -> tuple[Answer, bool]:
    """(the answer, whether the worker was confined)."""
    document = json.loads(path.read_bytes())
    kind = ANSWERS[document["kind"]]
    return kind(**_fields(kind, document["answer"])), document["confined"]


def _fields(kind: type, values: Json) -> Json:
    return {name: _value(declared, values[name]) for name, declared in get_type_hints(kind).items()}


def _value(declared: Any, value: Any) -> Any:
    """What stands in JSON for a value of the declared type, as that."""
    origin, arguments = get_origin(declared), get_args(declared)
    if origin is UnionType:
        return None if value is None else _value(_kind(arguments, value), value)
    if origin in (list, tuple, frozenset):
        return origin(_value(arguments[0], item) for item in value)
    if origin is dict:
        return {key: _value(arguments[1], item) for key, item in value.items()}
    if isinstance(declared, type) and is_dataclass(declared):
        return declared(**_fields(declared, value))
    return Path(value) if declared is Path else value


def _kind(kinds: tuple[Any, ...], value: Any) -> Any:
    """Which of several records a value is, by its fields; the first of what are no records."""
    records = (kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind))
    return next((kind for kind in records if {field.name for field in fields(kind)} == set(value)), kinds[0])
