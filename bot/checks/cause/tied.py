"""Embedding and head of a tied model both changed, where the adapter changes one of them."""

from __future__ import annotations

from collections.abc import Iterable

from bot.checks.cause.evidence import Evidence
from bot.checks.cause.hypothesis import Cause, Explained, Hypothesis, Prediction, left_of
from bot.checks.cause.numbers import Floats
from bot.checks.cause.suspects import Sample, TensorPart, parts_of
from bot.checks.expected.changes import Expected
from bot.checks.expected.config_changes import at

TIE = "tie_word_embeddings"


def pairs(evidence: Evidence) -> list[tuple[str, str]]:
    """Keys that are one tensor of the base, and that the adapter makes two different ones."""
    declared = evidence.claims.declared if evidence.claims else ()
    if not any(change.path.endswith(TIE) and change.value is False for change in declared):
        return []
    origins: dict[tuple[str, int], set[str]] = {}
    for key, wanted in evidence.expected.items():
        for ref in filter(None, (wanted.base, wanted.source)):
            origins.setdefault((str(ref.path), ref.stored.start), set()).add(key)
    return sorted({(min(keys), max(keys)) for keys in origins.values() if len(keys) == 2})


def _the_others(part: TensorPart, sample: Sample, evidence: Evidence) -> Iterable[Prediction]:
    if evidence.claims is None:
        return
    for pair in pairs(evidence):
        if part.key in pair:
            other = pair[1] if part.key == pair[0] else pair[0]
            values = _exact(other, evidence.expected[other], part, sample)
            if values is not None:
                yield Prediction(values=values, details={"other": other})


def _exact(key: str, wanted: Expected, part: TensorPart, sample: Sample) -> Floats | None:
    others = parts_of(key, wanted, part.merged, 0, 0)
    if len(others) != 1 or others[0].shape != part.shape:
        return None
    return others[0].exact(sample.rows)


def _describe(label: str, explained: list[Explained], evidence: Evidence) -> Cause:
    keys = tuple(each.part.key for each in explained)
    other = explained[0].details["other"]
    left = left_of(explained)
    what = (
        f"The change of {other} was merged into {keys[0]} too: the base ties the two, and the adapter changes one of them "
        f"({1 - left:.1%} of the deviation)."
    )
    return Cause(kind="tied-both", sentence=what, tensors=(*keys, other), figures={"unexplained": left})


def _still_tied(evidence: Evidence) -> Iterable[Cause]:
    """The embedding is what it must be, and a loader takes it for the head as well."""
    if evidence.claims is None:
        return
    tensors = evidence.case.model.tensors
    config = evidence.case.merged_config or {}
    for change in evidence.claims.declared:
        if change.path.endswith(TIE) and change.value is False and at(config, change.path) is not False:
            for pair in pairs(evidence):
                here = [key for key in pair if key in tensors]
                if len(here) == 1 and evidence.expected[here[0]].touched:
                    lost = pair[0] if here[0] == pair[1] else pair[1]
                    what = (
                        f"The change of {here[0]} is merged into {lost} too: config.json still ties the two, and the adapter "
                        "changes one of them."
                    )
                    yield Cause(kind="tied-both", sentence=what, tensors=(here[0], lost), figures={"tensors": 2})
                    return


TIED = Hypothesis(name="tied", predict=_the_others, describe=_describe, read=_still_tied)
