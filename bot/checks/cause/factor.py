"""The right delta, some constant factor too large or too small: found by least squares, W' − W on D."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from bot.checks.cause.evidence import Evidence
from bot.checks.cause.hypothesis import Cause, Explained, Hypothesis, Prediction, left_of
from bot.checks.cause.names import listed
from bot.checks.cause.numbers import round_to
from bot.checks.cause.suspects import Sample, TensorPart, dot, squares
from bot.checks.expected.adapter_files import CONFIG
from bot.checks.expected.changes import AddProduct
from bot.checks.finding import counted
from bot.checks.reading.folders import read_json

STEPS = 24  # at most, of the correction for what rounding takes off a small delta
CONVERGED = 1e-5  # relative: a correction that is smaller ends them
SURE = 4.0  # standard errors
ROUGH = 0.25
EXACTLY = 1e-4  # off 1: no less is worth a sentence
CLOSE = 2e-3  # relative: two factors that are the same to a reader


def fit(sample: Sample) -> tuple[float, float]:
    """(the factor of D that W' − W has, its standard error), corrected for what rounding does to a delta of this size."""
    delta = sample.delta
    power = dot(delta, delta)
    if not power:
        return 1.0, math.inf
    stored = dot(sample.moved, delta) / power
    left = squares(sample.moved - stored * delta)
    error = math.sqrt(left / max(1, delta.size) / power)
    factor, start = stored, sample.exact - delta
    for _ in range(STEPS):
        rounded = dot(round_to(start + factor * delta, sample.dtype) - start, delta) / power
        if not rounded or not math.isfinite(rounded):
            break
        factor *= stored / rounded
        if abs(stored / rounded - 1) < CONVERGED:
            break
    return factor, error


def _scaled(part: TensorPart, sample: Sample, evidence: Evidence) -> Iterable[Prediction]:
    if part.replaces or not part.wanted.touched or part.step is None:
        return
    if isinstance(part.step, AddProduct) and part.step.magnitude is not None:
        yield from _scaled_within_norm(part, sample, evidence)
        return
    factor, error = fit(sample)
    if abs(factor) <= SURE * error or not math.isfinite(factor):
        return
    start = sample.exact - sample.delta
    fitted = sample.distance(start + factor * sample.delta)
    names = []
    for value, text in readings(part, evidence):
        near = abs(factor - value) <= SURE * error + CLOSE * abs(value)
        # Of a delta that rounding all but loses, the fit is rough.
        if near or (abs(factor / value - 1) < ROUGH and sample.distance(start + value * sample.delta) <= fitted):
            names.append((value, text))
    factor = names[0][0] if names else factor
    if abs(factor - 1) > (CLOSE if names else SURE * error + EXACTLY):
        details = {"factor": factor, "error": error, "readings": tuple(text for _, text in names)}
        yield Prediction(values=start + factor * sample.delta, details=details)


def _scaled_within_norm(part: TensorPart, sample: Sample, evidence: Evidence) -> Iterator[Prediction]:
    """DoRA divides by the sum's norm: the known factors are tried one by one, and the best is kept."""
    known = {value: text for value, text in reversed(list(readings(part, evidence))) if abs(value - 1) > CLOSE}
    tried = [(sample.distance(part.exact(sample.rows, sample.source, factor=value)), value) for value in known]
    if tried:
        _, factor = min(tried)
        details = {"factor": factor, "error": 0.0, "readings": (known[factor],)}
        yield Prediction(values=part.exact(sample.rows, sample.source, factor=factor), details=details)


def readings(part: TensorPart, evidence: Evidence) -> Iterator[tuple[float, str]]:
    """(factor, what gives it) for a part of this rank and scaling."""
    step = part.step
    yield 2.0, "a delta that is added two times"
    yield 0.5, ""
    yield -1.0, "a delta that is subtracted"
    if not isinstance(step, AddProduct) or step.right is None or not step.scaling:
        return
    config = read_json(evidence.case.subject.adapter / CONFIG) or {}
    rank, scaling = step.left.shape[1], step.scaling
    root = math.sqrt(rank)
    roots = bool(config.get("use_rslora"))
    alpha = scaling * (root if roots else rank)
    yield (1 / root, "α/r in place of rsLoRA's α/√r") if roots else (root, "α/√r in place of α/r")
    yield 1 / scaling, "the scaling left out"
    yield 1 / alpha, "α left out of the scaling"
    yield alpha / scaling, "α in place of the scaling, not divided by r"
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        numbers = config.get("lora_alpha", 8), config.get("r", 8)
        if all(isinstance(number, int | float) and number > 0 for number in numbers):
            for divisor in (numbers[1], rank):
                usual = numbers[0] / (math.sqrt(divisor) if roots else divisor)
                yield usual / scaling, "rank_pattern or alpha_pattern left unread"


def _describe(label: str, explained: list[Explained], evidence: Evidence) -> Cause:
    factors = [each.details["factor"] for each in explained]
    common = [text for text in explained[0].details["readings"]
              if text and all(text in each.details["readings"] for each in explained)]  # fmt: skip
    weights = [each.deviation for each in explained]
    factor = sum(weight * value for weight, value in zip(weights, factors, strict=True)) / sum(weights)
    error = math.sqrt(sum(each.details["error"] ** 2 for each in explained)) / len(explained)
    low, high = min(factors), max(factors)
    size = f"{factor:.4g}" if high - low <= 0.01 * abs(factor) else f"{low:.3g} to {high:.3g}"
    keys = list(dict.fromkeys(each.part.key for each in explained))
    why = f": {joined_or(common)}" if common else ""
    figures = {"factor": factor, "error": error, "lowest": low, "highest": high, "unexplained": left_of(explained)}
    number = len({part.key for part in evidence.parts()})
    what = f"The delta is {size} times what it should be in {_of(len(keys), number)}{why}."
    if len(keys) < number:
        what = what.removesuffix(".") + f" ({listed(keys)})."
    return Cause(kind="factor", sentence=what, tensors=tuple(keys), figures=figures)


def _of(some: int, number: int) -> str:
    return f"all {counted(number, 'tensor')}" if some == number else f"{some} of {counted(number, 'tensor')}"


def joined_or(words: list[str]) -> str:
    """`a`, `a, or b`."""
    return ", or ".join(words)


def _leaning(remaining: list[Explained], evidence: Evidence) -> Iterable[tuple[Cause, list[Explained]]]:
    """Of a merge whose every element lies within the error of an arithmetic, and that leans all the same: the factor of all its
    tensors together."""
    from bot.checks.elementwise.arithmetic import NONE_FITS

    parts = [each for each in remaining if each.part.wanted.touched and not each.part.replaces]
    leans = evidence.foreign and evidence.failed("touched")
    if not parts or not leans or any(tally.arithmetic >= NONE_FITS for tally in evidence.tallies if tally.wrong):
        return
    fits = [fit(Sample.of(each.part)) for each in parts]
    sure = [(factor, error) for factor, error in fits if math.isfinite(error) and error > 0]
    if not sure:
        return
    weight = sum(error**-2 for _, error in sure)
    factor, error = sum(value / error**2 for value, error in sure) / weight, weight**-0.5
    if abs(factor - 1) <= SURE * error:
        return
    keys = tuple(dict.fromkeys(each.part.key for each in parts))
    what = (
        f"The delta is {factor:.4f} ± {error:.4f} times what it should be, over {counted(len(keys), 'tensor')} together; "
        "each number alone could have been rounded so."
    )
    yield Cause(kind="factor", sentence=what, tensors=keys, figures={"factor": factor, "error": error}), parts


FACTOR = Hypothesis(name="factor", predict=_scaled, describe=_describe, remaining=_leaning)
