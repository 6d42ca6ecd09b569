"""Tensors that hold what belongs to another one of their shape: its delta, or all of its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from bot.checks.cause.evidence import Evidence
from bot.checks.cause.hypothesis import Cause, Explained, Hypothesis, Prediction, left_of
from bot.checks.cause.names import in_words, split
from bot.checks.cause.numbers import Floats, round_to
from bot.checks.cause.suspects import Sample, TensorPart, squares
from bot.checks.expected.changes import AddProduct
from bot.checks.finding import counted

DELTA, TENSOR = "delta", "tensor"
ALIKE = 0.3  # cosine from which on another delta is worth a closer look
PAIRS_NAMED = 4


def _of_another(part: TensorPart, sample: Sample, evidence: Evidence) -> Iterable[Prediction]:
    rows, columns = part.grid_lines
    stored = part.read(part.merged, rows)[:, columns]
    yield from _another_delta(part, sample, evidence, stored)
    yield from _another_tensor(part, sample, evidence, stored)


def _another_delta(part: TensorPart, sample: Sample, evidence: Evidence, stored: Floats) -> Iterator[Prediction]:
    if not isinstance(part.step, AddProduct) or part.step.magnitude is not None:
        return
    moved = stored - evidence.on_grid(part).weight
    others = [other for other in _same_shape(part, evidence.parts()) if isinstance(other.step, AddProduct)
              and other.step.magnitude is None]  # fmt: skip
    likeness = [cosine(moved, evidence.on_grid(other).exact - evidence.on_grid(other).weight) for other in others]
    if likeness and max(likeness) > ALIKE:
        other = others[int(np.argmax(likeness))]
        lines = _same_rows(part, other, sample.rows)
        delta = other.exact(lines) - other.source(lines)
        yield Prediction(values=sample.source + delta, label=DELTA, details={"other": other})


def _another_tensor(part: TensorPart, sample: Sample, evidence: Evidence, stored: Floats) -> Iterator[Prediction]:
    parts = [*evidence.parts(), *evidence.parts(touched=False)]
    for other in _same_shape(part, parts):
        grid = evidence.on_grid(other)
        for values, whole in ((grid.exact, True), (grid.weight, False)):
            if squares(stored - round_to(values, sample.dtype)) < 0.01 * squares(stored - evidence.on_grid(part).exact):
                lines = _same_rows(part, other, sample.rows)
                start = other.source(lines)
                numbers = other.exact(lines, start) if whole else start
                yield Prediction(values=numbers, label=TENSOR, details={"other": other})
                return


def _same_shape(part: TensorPart, parts: Iterable[TensorPart]) -> list[TensorPart]:
    others = [other for other in parts if other.shape == part.shape and other.wanted.dtype == part.wanted.dtype]
    return [other for other in others if (other.key, other.lines[0]) != (part.key, part.lines[0])]


def _same_rows(part: TensorPart, other: TensorPart, rows: list[int]) -> list[int]:
    return [other.lines[part.lines.index(row)] for row in rows]


def cosine(first: Floats, second: Floats) -> float:
    """Between two arrays as vectors; 0 where one is zero or no number."""
    sizes = squares(first) * squares(second)
    value = float(np.dot(first.ravel(), second.ravel())) / sizes**0.5 if sizes > 0 else 0.0
    return value if np.isfinite(value) else 0.0


def _describe(label: str, explained: list[Explained], evidence: Evidence) -> Cause:
    pairs = {_identity(each.part): each.details["other"] for each in explained}
    exchanged = [
        each for each in explained if _identity(pairs.get(_identity(each.details["other"]))) == _identity(each.part)
    ]
    what = "delta" if label == DELTA else "numbers"
    sentences = []
    if exchanged:
        sentences.append(f"The {what} of {_exchanges(exchanged)} are exchanged".replace("delta of", "deltas of"))
    others = [each for each in explained if each not in exchanged]
    if others:
        named = [f"{each.part.key} has the {what} of {each.details['other'].key}" for each in others[:PAIRS_NAMED]]
        more = [f"{counted(len(others) - PAIRS_NAMED, 'tensor')} more"] if len(others) > PAIRS_NAMED else []
        sentences.append(in_words([*named, *more]))
    left = left_of(explained)
    sentence = f"{'; '.join(sentences)} (unexplained: {left:.1%})."
    keys = tuple(dict.fromkeys(each.part.key for each in explained))
    figures = {"exchanged": len(exchanged), "unexplained": left}
    return Cause(kind="swapped", sentence=sentence, tensors=keys, figures=figures)


def _identity(part: TensorPart | None) -> tuple[str, int] | None:
    return (part.key, part.lines[0]) if part else None


def _exchanges(exchanged: list[Explained]) -> str:
    """Which with which: two modules in some layers, or two layers' modules."""
    words = []
    done: set[tuple[str, int] | None] = set()
    for each in exchanged:
        part, other = each.part, each.details["other"]
        if _identity(part) in done:
            continue
        done |= {_identity(part), _identity(other)}
        (layer, module), (other_layer, other_module) = split(part.key), split(other.key)
        if part.key == other.key:
            words.append(f"{_in_stack(part)} and {_in_stack(other)} of {part.key}")
        elif layer == other_layer:
            words.append(f"{module} and {other_module}" + ("" if layer is None else f" in layer {layer}"))
        elif module == other_module:
            words.append(f"{module} in layers {layer} and {other_layer}")
        else:
            words.append(f"{part.key} and {other.key}")
    more = [f"{len(words) - PAIRS_NAMED} more pairs"] if len(words) > PAIRS_NAMED else []
    return in_words([*words[:PAIRS_NAMED], *more])


def _in_stack(part: TensorPart) -> str:
    shape = part.wanted.shape
    if len(shape) > 2 and part.view[0] == shape[0] * shape[1] and part.shape[0] == shape[1]:
        return f"expert {part.lines[0] // shape[1]}"
    return f"rows from {part.lines[0]} on"


SWAPPED = Hypothesis(name="swapped", predict=_of_another, describe=_describe, costly=True)
