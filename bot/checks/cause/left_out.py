"""Nothing was merged, or not all of it: what should have changed is still the base's."""

from __future__ import annotations

from collections.abc import Iterable

from bot.checks.cause.evidence import Evidence
from bot.checks.cause.hypothesis import Cause, Explained, Hypothesis, Prediction, left_of
from bot.checks.cause.names import in_words, listed
from bot.checks.cause.suspects import Sample, TensorPart
from bot.checks.expected.changes import SetRows
from bot.checks.finding import counted

TOKENS, WHOLE, DELTA = "tokens", "whole", "delta"
STACKS_NAMED = 4


def _as_before(part: TensorPart, sample: Sample, evidence: Evidence) -> Iterable[Prediction]:
    if not part.wanted.touched:
        return
    values = sample.before if sample.before is not None else None if part.replaces else sample.source
    if values is not None:
        label = TOKENS if isinstance(part.step, SetRows) else WHOLE if part.replaces else DELTA
        yield Prediction(values=values, label=label)


def _describe(label: str, explained: list[Explained], evidence: Evidence) -> Cause:
    keys = list(dict.fromkeys(each.part.key for each in explained))
    parts = [part for part in evidence.parts() if _label(part) == label]
    figures = {
        "left_out": len(explained),
        "of": len(parts),
        "factor": 0.0,
        "unexplained": left_of(explained),
    }
    if _is_all(explained, evidence):
        what = f"Nothing was merged: all {counted(len(keys), 'tensor')} that the adapter changes are still the base's."
        return Cause(kind="not-merged", sentence=what, tensors=tuple(keys), figures=figures)
    share = f"{len(explained)} of {len(parts)}"
    if label == TOKENS:
        rows = sum(len(each.part.lines) for each in explained)
        what = f"The trained tokens were forgotten: {counted(rows, 'row')} of {listed(keys)} are still the base's."
        return Cause(kind="tokens-forgotten", sentence=what, tensors=tuple(keys), figures={**figures, "rows": rows})
    if label == WHOLE:
        what = f"What the adapter brings whole (modules_to_save) was forgotten: {listed(keys)}, still the base's."
        return Cause(kind="saved-modules-forgotten", sentence=what, tensors=tuple(keys), figures=figures)
    what = f"{share} changes were left out, and the base's numbers are still there: {_named(explained)}{_shards(keys, evidence)}."
    return Cause(kind="modules-left-out", sentence=what, tensors=tuple(keys), figures=figures)


def _label(part: TensorPart) -> str:
    return TOKENS if isinstance(part.step, SetRows) else WHOLE if part.replaces else DELTA


def _is_all(explained: list[Explained], evidence: Evidence) -> bool:
    """Whether no part of any tensor that the adapter changes is anything but the base's."""
    keys = {each.part.key for each in explained}
    merged = [tally for tally in evidence.tallies if tally.wanted.touched and tally.key not in keys and tally.changed]
    others = [part for part in evidence.deviating if part.key not in keys or _label(part) != _label(explained[0].part)]
    missing = [
        key for key, wanted in evidence.expected.items() if wanted.touched and key not in evidence.case.model.tensors
    ]
    half = len(explained) < sum(1 for part in evidence.parts() if part.key in keys)
    return not merged and not others and not missing and not half


def _named(explained: list[Explained]) -> str:
    """The modules; of a stack of experts, how many of them."""
    stacks: dict[str, list[TensorPart]] = {}
    for each in explained:
        if each.part.step is not None and each.part.shape[0] < each.part.view[0]:
            stacks.setdefault(each.part.key, []).append(each.part)
    whole = listed([each.part.key for each in explained if each.part.key not in stacks])
    return "; ".join(
        filter(None, [whole, *(_in_stack(key, parts) for key, parts in list(stacks.items())[:STACKS_NAMED])])
    )


def _in_stack(key: str, parts: list[TensorPart]) -> str:
    shape, view = parts[0].wanted.shape, parts[0].view
    if len(shape) > 2 and view[0] == shape[0] * shape[1]:
        numbers = sorted({part.lines[0] // shape[1] for part in parts})
        return f"expert{'s' if len(numbers) > 1 else ''} {in_words([str(number) for number in numbers])} of {key}"
    return f"rows from {in_words([str(part.lines[0]) for part in parts[:STACKS_NAMED]])} on of {key}"


def _shards(keys: list[str], evidence: Evidence) -> str:
    """The files that hold nothing but what was left out, where there are others."""
    tensors = evidence.case.model.tensors
    where = {
        key: ref.path.name
        for key, ref in tensors.items()
        if key in evidence.expected and evidence.expected[key].touched
    }
    files = {where[key] for key in keys if key in where}
    inside = [key for key, file in where.items() if file in files]
    if len(set(where.values())) == 1 or sorted(inside) != sorted(set(keys)):
        return ""
    return f" (all that {' and '.join(sorted(files)[:3])} should have)"


LEFT_OUT = Hypothesis(name="left out", predict=_as_before, describe=_describe)
