"""The shape of a hypothesis: something that may have gone wrong, what would then stand in the weights, and how it is said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bot.records import Json

if TYPE_CHECKING:
    from bot.checks.cause.evidence import Evidence
    from bot.checks.cause.numbers import Floats
    from bot.checks.cause.suspects import Sample, TensorPart

TENSORS_NAMED = 8
LEFT_OVER = 0.1  # of a part's deviation: the most that an explanation of it may leave


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What went wrong, in a sentence, with the tensors and the figures that say so.

    `deviation`: Σ (stored − right)² of what it explains; 0 where it is no matter of numbers. `remark`: it fails no check.
    """

    kind: str
    sentence: str
    tensors: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    deviation: float = 0.0
    remark: bool = False

    def to_json(self) -> Json:
        """As verification.json has it."""
        figures = {name: value if isinstance(value, int) else float(value) for name, value in self.figures.items()}
        return {
            "kind": self.kind, "sentence": self.sentence, "tensors": list(self.tensors[:TENSORS_NAMED]), "figures": figures,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What would stand in a part's rows if the hypothesis held. `label`: predictions of one label are one cause, in however many
    parts; `details`: what the sentence needs to know of this part."""

    values: Floats
    label: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Explained:
    """A part whose numbers a prediction fits: `left` of its deviation (0…1) is not explained, `matched` of its elements are
    exactly those predicted."""

    part: TensorPart
    deviation: float
    left: float
    matched: float
    details: Mapping[str, Any]


def no_predictions(part: TensorPart, sample: Sample, evidence: Evidence) -> Iterable[Prediction]:
    """For a hypothesis that is read elsewhere."""
    return ()


def no_causes(evidence: Evidence) -> Iterable[Cause]:
    """For a hypothesis about numbers alone."""
    return ()


def not_described(label: str, explained: list[Explained], evidence: Evidence) -> Cause:
    """For a hypothesis without predictions, which is never asked to describe one."""
    raise AssertionError(f"{label} was predicted, and nothing describes it")


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One thing that may have gone wrong. Each of the three ways to test it is optional but one:

    `predict`: what would stand in a part's rows; `describe` says it of all parts that one label explains.
    `read`: causes out of names, files and findings. `remaining`: of the parts that no prediction explains.
    `costly`: it is only asked where no prediction of another fits. `limit`: see LEFT_OVER.
    """

    name: str
    predict: Callable[[TensorPart, Sample, Evidence], Iterable[Prediction]] = no_predictions
    describe: Callable[[str, list[Explained], Evidence], Cause] = not_described
    read: Callable[[Evidence], Iterable[Cause]] = no_causes
    remaining: Callable[[list[Explained], Evidence], Iterable[tuple[Cause, list[Explained]]]] | None = None
    costly: bool = False
    limit: float = LEFT_OVER


def mean(values: Iterable[float]) -> float:
    """Of at least one number."""
    numbers = list(values)
    return sum(numbers) / len(numbers)


def left_of(explained: Iterable[Explained]) -> float:
    """The share of the deviation of several parts that is not explained."""
    parts = list(explained)
    total = sum(part.deviation for part in parts)
    return sum(part.left * part.deviation for part in parts) / total if total else 0.0
