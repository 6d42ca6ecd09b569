"""Prompt by prompt: how far base, control and merged model lie from the unmerged one, and what they say."""

from __future__ import annotations

from math import isfinite

from bot.checks.behaviour.answers import Trial
from bot.checks.behaviour.job import (
    QUESTIONS,
    ComparisonAnswer,
    Distance,
    MergedAnswer,
    ReferenceAnswer,
    Replies,
    Stopped,
)  # fmt: skip
from bot.records import Json


def prompt_rows(trial: Trial | None) -> list[Json]:
    """{tokens, adapter, control, merged} of each prompt, in the metric of the noise floor (nats per token, or a relative squared
    error): how far from the unmerged model are the base (None: not given this prompt), a control (their mean), and the merge. []
    where K was not measured."""
    if trial is None or not trial.measured:
        return []
    reference, answer = trial.reference, trial.merged
    assert isinstance(reference, ReferenceAnswer)
    assert isinstance(answer, MergedAnswer)
    per_token = reference.kind == "kl"
    given = reference.base_prompts or range(len(reference.base))
    base = {number: _far(distance, per_token) for number, distance in zip(given, reference.base, strict=True)}
    rows = []
    for number, (merged, *controls) in enumerate(zip(answer.distances or (), *reference.controls, strict=True)):
        adapter, ours = base.get(number), _far(merged, per_token)
        control = sum(_far(distance, per_token) for distance in controls) / len(controls)
        if all(map(isfinite, (adapter or 0.0, ours, control))):
            rows.append({"tokens": merged.positions, "adapter": adapter, "control": control, "merged": ours})
    return rows


def answer_rows(trial: Trial, quantised: ComparisonAnswer | None) -> tuple[list[Json], str]:
    """({prompt, base, unmerged, merged} of each prompt, why there is none). `quantised`: what came of a result that is stored so."""
    reference = trial.reference
    if isinstance(reference, Stopped):
        return [], reference.why
    merged = quantised.replies if quantised is not None and quantised.replies != Replies() else None
    if merged is None:
        if isinstance(trial.merged, Stopped):
            return [], trial.merged.why
        merged = trial.merged.replies
    replies = (reference.base_replies, reference.unmerged_replies, merged)
    if why := next((each.why_not for each in replies if each.why_not), ""):
        return [], why
    if not all(each.texts for each in replies):
        return [], "the merged model was not run"
    rows = zip(QUESTIONS, *(each.texts for each in replies), strict=True)
    return [dict(zip(("prompt", "base", "unmerged", "merged"), row, strict=True)) for row in rows], ""


def _far(distance: Distance, per_token: bool) -> float:
    scale = distance.positions if per_token else distance.size
    return distance.far / scale if scale else 0.0
