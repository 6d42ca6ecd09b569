"""Another base, or another adapter: what is there is as good a merge as any, of other things."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bot.checks.cause.evidence import Evidence
from bot.checks.cause.hypothesis import Cause, Explained, Hypothesis
from bot.checks.cause.names import listed
from bot.checks.cause.numbers import UNITS
from bot.checks.cause.suspects import Sample, TensorPart, dot, squares
from bot.checks.cause.swapped import cosine
from bot.checks.expected.changes import AddProduct
from bot.checks.finding import counted

UNRELATED = 1.0  # relative distance: two sets of weights without anything in common lie √2 apart
MANY = 0.5  # of the tensors that no adapter touches
LOW_RANK = 0.9  # of a difference, in as many directions as the adapter's rank
ALIKE = 0.3  # cosine: beyond it the two deltas have something in common
SEVERAL = 2.0 / 3


def another_base(remaining: list[Explained], evidence: Evidence) -> Iterable[tuple[Cause, list[Explained]]]:
    """Tensors that no adapter touches are not this base's."""
    untouched = [each for each in remaining if not each.part.wanted.touched and len(each.part.wanted.shape) > 1]
    matrices = [part for part in evidence.parts(touched=False) if len(part.wanted.shape) > 1]
    others = [each for each in remaining if not each.part.wanted.touched and each not in untouched]
    if not untouched or len(untouched) < MANY * len(matrices):
        return
    distance = _distance_of([each.part for each in untouched])
    touched = [each for each in remaining if each.part.wanted.touched and not each.part.replaces]
    figures = {"distance": distance, "untouched": len(untouched), "of": len(matrices)}
    beside = ""
    if touched:
        without_delta = _distance_of([each.part for each in touched])
        figures["distance_without_delta"] = without_delta
        beside = f", and the others, less the delta, {without_delta:.2g}"
    kind = "unrelated weights" if distance > UNRELATED else "another revision of it, or a further training"
    what = (
        f"It was merged into another base ({kind}): {len(untouched)} of {len(matrices)} weights "
        f"that the adapter leaves alone lie {distance:.2g} of their size from this base's{beside}."
    )
    keys = tuple(each.part.key for each in untouched)
    yield Cause(kind="other-base", sentence=what, tensors=keys, figures=figures), [*untouched, *others, *touched]


def _distance_of(parts: list[TensorPart]) -> float:
    """‖W′ − what must be there‖ / ‖W‖ of several parts together; 0 where there is nothing to compare."""
    moved = size = 0.0
    for part in parts:
        sample = Sample.of(part)
        moved += squares(sample.stored - sample.exact) * sample.scale
        size += squares(sample.source) * sample.scale
    return (moved / size) ** 0.5 if size else 0.0


def another_adapter(remaining: list[Explained], evidence: Evidence) -> Iterable[tuple[Cause, list[Explained]]]:
    """What was added is as narrow as this adapter's delta, and is not it."""
    if any(part for part in evidence.deviating if not part.wanted.touched):
        return
    own = [each for each in remaining if isinstance(each.part.step, AddProduct) and each.part.step.right is not None]
    products = [part for part in evidence.parts() if isinstance(part.step, AddProduct) and part.step.right is not None]
    if not own or len(own) < SEVERAL * len(products):
        return
    likeness, sizes, narrow = [], [], []
    for each in own:
        sample = Sample.of(each.part)
        likeness.append(cosine(sample.moved, sample.delta))
        sizes.append((squares(sample.moved) / (dot(sample.delta, sample.delta) or 1.0)) ** 0.5)
        narrow.append(_share_of_rank(each.part, sample))
    alike, size, share = float(np.mean(likeness)), float(np.mean(sizes)), float(np.mean(narrow))
    plain = all(isinstance(each.part.step, AddProduct) and each.part.step.magnitude is None for each in own)
    if plain and share < LOW_RANK:
        return
    keys = tuple(dict.fromkeys(each.part.key for each in own))
    related = (
        "an earlier or later state of this run, or a run that began with it" if abs(alike) > ALIKE else "another run"
    )
    what = (
        f"It is a merge of another adapter ({related}): in {counted(len(keys), 'tensor')} what was added is {size:.2g} times as "
        f"large as this adapter's delta and has a cosine of {alike:.2f} with it"
    )
    what += f"; {share:.0%} of it lie in as many directions as this adapter's rank." if plain else "."
    figures = {"cosine": alike, "size": size, "low_rank": share}
    beside = [each for each in remaining if each.part.wanted.touched and each not in own]
    yield Cause(kind="other-adapter", sentence=what, tensors=keys, figures=figures), [*own, *beside]


def _share_of_rank(part: TensorPart, sample: Sample) -> float:
    """How much of what was added, less the rounding, lies in as many directions as the adapter's rank (‖·‖², of the grid)."""
    assert isinstance(part.step, AddProduct)
    rows, columns = part.grid_lines
    moved = part.read(part.merged, rows)[:, columns] - part.source(rows)[:, columns]
    if not np.isfinite(moved).all():
        return 0.0
    sizes = np.square(np.linalg.svd(moved, compute_uv=False))
    rank = part.step.left.shape[1]
    # A rounding to nearest errs by u/√3 of a number at most, on average, in every direction alike.
    noise = squares(part.read(part.merged, rows)[:, columns]) * UNITS[sample.dtype] ** 2 / 3
    rest = max(0.0, float(sizes[rank:].sum()) - noise)
    return float(1 - rest / sizes.sum()) if sizes.sum() and rank < len(sizes) else 0.0


def nothing_known(remaining: list[Explained], evidence: Evidence) -> Iterable[tuple[Cause, list[Explained]]]:
    """What no hypothesis explains is said to be so, with what was measured."""
    if not remaining:
        return
    keys = list(dict.fromkeys(each.part.key for each in remaining))
    samples = [Sample.of(each.part) for each in remaining]
    power = sum(dot(sample.delta, sample.delta) * sample.scale for sample in samples)
    kept = sum(dot(sample.moved, sample.delta) * sample.scale for sample in samples)
    deviation = sum(each.deviation for each in remaining)
    size = sum(squares(sample.source) * sample.scale for sample in samples)
    distance = (deviation / size) ** 0.5 if size else 0.0
    figures = {"distance": distance, **({"factor": kept / power} if power else {})}
    share = f" and hold {kept / power:.2g} times the delta" if power else ""
    what = (
        f"No cause that is known here explains {counted(len(keys), 'tensor')}: they lie {distance:.2g} of their size from what they "
        f"must be{share} ({listed(keys)})."
    )
    yield Cause(kind="unexplained", sentence=what, tensors=tuple(keys), figures=figures), remaining


OTHER_BASE = Hypothesis(name="another base", remaining=another_base)
OTHER_ADAPTER = Hypothesis(name="another adapter", remaining=another_adapter)
UNEXPLAINED = Hypothesis(name="unexplained", remaining=nothing_known)
