"""What the merged model does: it loads without complaint, and says what the unmerged one says, up to rounding."""

from __future__ import annotations

from bot.checks.case import Case
from bot.checks.finding import Status, counted, finding, graded
from bot.records import Finding, Json

NOISE = 1e-28  # a distance that float64 compute makes by itself: (100 units of 2⁻⁵³)²; float32 compute never gets there
ALLOWED = 1.0  # theory 0.5: rounding to nearest has half the variance of the control's stochastic rounding


def loads(case: Case) -> Finding:
    """The plain class loads the folder, without peft and without network: nothing missing, extra, or made up."""
    answer = case.trial.merged
    if stopped := _stopped("loads", "no complaint", answer):
        return stopped
    said = answer["loads"]
    fails = [f"{key} is {how}." for how in ("missing", "unexpected", "mismatched") for key in said[how]]
    fails += [f"The tokenizer is another: {one}." for one in said.get("tokens", ())]
    if not fails:
        fails += [f"transformers says: {line}" for line in said["said"]]
    tokenizer = "" if said["tokenizer"] == "none" else f", with its {said['tokenizer']}"
    right = (said["class"], f"No peft, no network{tokenizer}.")
    return graded("loads", "no complaint", right, fails=fails)


def behaviour(case: Case) -> Finding:
    """K = distance(unmerged, merged) ÷ distance(unmerged, control), at most 1. What a merge clamps is clamped in all three."""
    trial, allowed = case.trial, f"K ≤ {ALLOWED:g}"
    for answer in (trial.reference, trial.merged):
        if stopped := _stopped("behaviour", allowed, answer):
            return stopped
    if said := _other_layers(frozenset(trial.reference["layers"]), trial.expected):
        return finding("behaviour", "fail", counted(len(trial.reference["layers"]), "layer"), allowed, said)
    if trial.lost:
        why = f"The {trial.lost} model's outputs are NaN or infinite: there is nothing to compare."
        return finding("behaviour", "fail", "not finite", allowed, why)
    floor = trial.noise_floor or {}
    silent = floor["merged"] <= NOISE  # of two distances that small, neither is more than noise
    status: Status = "pass" if floor["ratio"] <= ALLOWED or silent else "fail"
    measured = f"K = {floor['ratio']:.3g} ± {floor['standard_error']:.1g}"
    return finding("behaviour", status, measured, allowed, _why(status, floor))


def _other_layers(pefts: frozenset[str], ours: frozenset[str]) -> str | None:
    """Two readings of one adapter: which parameters it changes."""
    if pefts == ours:
        return None
    example = min(pefts ^ ours)
    return (
        f"PEFT changes {counted(len(pefts), 'parameter')}; by its own files the adapter changes {len(ours)} "
        f"({example}: only {'PEFT' if example in pefts else 'the files'})."
    )


def _why(status: Status, floor: Json) -> str:
    if status == "fail":
        return (
            f"The merged model lies {floor['ratio']:.3g} times as far from the unmerged one as rounding explains "
            f"({floor['merged']:.2g} against {floor['floor']:.2g}, {floor['metric']})."
        )
    return (
        f"As close as rounding allows: {floor['merged']:.2g} ({floor['metric']}); the adapter's effect is "
        f"{floor['adapter']:.2g}. Top-1 agreement {floor['top1_agreement']:.1%} of {floor['positions']}."
    )


def _stopped(id: str, allowed: str, answer: Json) -> Finding | None:
    """A worker that could not answer: an error is a failure, a known limit is a skip."""
    if "error" in answer:
        return finding(id, "fail", "error", allowed, f"The model could not be run: {answer['error'][:400]}")
    if "skip" in answer:
        return finding(id, "skip", "not run", allowed, f"Not run: {answer['skip']}.")
    return None
