"""What the merged model does: it loads without complaint, and says what the unmerged one says, up to rounding."""

from __future__ import annotations

from bot.checks.behaviour.answers import NOISE, Trial
from bot.checks.behaviour.job import Stopped
from bot.checks.behaviour.noise import more_flips
from bot.checks.case import Case
from bot.checks.finding import Status, counted, finding, graded
from bot.records import Finding, Json

TABLE = "LOAD REPORT"  # of transformers: which keys are missing, unexpected and mismatched, in rows
ALLOWED = "K ≤ 1 + 3 errors"
SHARE = 1e-4  # of the adapter's effect, in KL or squares: one hundredth of what it moves. Exact models: below 1e-9

LARGEST_KL_RATIO = 0.2  # KL, as a share of what the adapter moves: beyond it the tune is on its way out
REMEDY = "Keep the adapter separate, beside the base that it was trained on, or publish the merge in 16 bits (--quantize none)"


def run_models(case: Case) -> Trial:
    """The models, loaded and run in processes of their own."""
    from bot.checks.behaviour.trial import hold_trial

    return hold_trial(case)


def loads(case: Case) -> Finding:
    """The plain class loads the folder, without peft and without network: nothing missing, extra, or made up."""
    reference, merged = case.once(run_models).reference, case.once(run_models).merged
    if isinstance(merged, Stopped):
        if merged.raised and isinstance(reference, Stopped) and reference.unrunnable:
            merged = reference  # what fails with the base fails with whatever is made of it
        return _stopped("loads", "no complaint", merged)
    report = merged.loads
    unused = _unused(case, report.unexpected)
    fails = [f"{key} is {how}." for how in ("missing", "unexpected", "mismatched") for key in getattr(report, how)
             if key not in unused]  # fmt: skip
    # As trainers set it.
    padding = [] if case.subject.ours else [token for token in report.tokens if token.startswith("pad_token ")]
    fails += [f"The tokenizer is another: {token}." for token in report.tokens if token not in padding]
    if not fails:
        fails += [f"transformers says: {line}" for line in report.complaints if not (unused and TABLE in line)]
    tokenizer = "" if report.tokenizer == "none" else f", with its {report.tokenizer}"
    layered = " Looked at layer by layer, since no whole model fits into memory." if report.by_layers else ""
    layered += (
        f" It has no use for {counted(len(unused), 'scale')} of activations, which the base stores." if unused else ""
    )
    right = (report.model_class, f"No peft, no network{tokenizer}.{layered}")
    warns = [f"The tokenizer is another: {token}." for token in padding]
    warns += [f"{remark}." for remark in report.remarks]
    return graded("loads", "no complaint", right, fails=fails, warns=warns)


def _unused(case: Case, unexpected: list[str]) -> set[str]:
    """Scales of activations and caches of a base whose form is kept: transformers stacks experts, and has no use for those of each.
    That they are the base's, the weights' checks say."""
    if case.subject.quantize != "same" or not unexpected:
        return set()
    from bot.checks.reading.quantised import scales_beside

    return scales_beside(unexpected, case.merged_config or {})


def behaviour(case: Case) -> Finding:
    """The merged model answers as the unmerged one, but for one rounding to nearest.

    K = distance(unmerged, merged) ÷ distance(unmerged, control), and its error: see bot/checks/behaviour/noise.py. What a merge clamps
    is clamped in all three. Whatever K says, the exact merge must answer as the unmerged model does: it does not where a
    model reads a weight itself, past PEFT's layer.
    """
    trial = case.once(run_models)
    reference = trial.reference
    if isinstance(reference, Stopped):
        return _stopped("behaviour", ALLOWED, reference)
    if isinstance(trial.merged, Stopped):
        return _stopped("behaviour", ALLOWED, trial.merged)
    if difference := _other_layers(frozenset(reference.layers), trial.expected):
        return finding("behaviour", "fail", counted(len(reference.layers), "layer"), ALLOWED, difference)
    if trial.lost:
        why = f"The {trial.lost} model's outputs are NaN or infinite: there is nothing to compare."
        why += _starts(trial) if trial.lost == "merged" else ""
        return finding("behaviour", "fail", "not finite", ALLOWED, why)
    floor, allowed = trial.noise_floor or {}, f"K ≤ {trial.ratio.limit:.3g}"
    measured = f"K = {floor['ratio']:.3g} ± {floor['standard_error']:.1g}"
    if trial.systematic > (0.0 if reference.uncalled else SHARE):
        return _goes_around(trial, reference.uncalled)
    if floor["merged"] <= NOISE:  # of two distances that small, neither is more than noise
        return finding("behaviour", "pass", measured, allowed, _right(trial, floor))
    if trial.ratio.k > trial.ratio.limit:
        return finding("behaviour", "fail", measured, allowed, _too_far(trial, floor))
    if more_flips(*trial.flips):
        return finding("behaviour", "fail", measured, allowed, _other_experts(trial))
    return finding("behaviour", "pass", measured, allowed, _right(trial, floor))


def requantised(case: Case) -> Finding:
    """A result that is stored quantised still does what the adapter taught."""
    id, allowed = "requantised", f"KL ratio ≤ {LARGEST_KL_RATIO:g}"
    compared = case.once(run_models).comparison
    if compared is None or isinstance(compared, Stopped):
        status: Status = "fail" if compared and compared.status == "error" else "skip"
        why = compared.why if compared else "the unmerged model could not be run"
        return finding(id, status, "not run", allowed, f"Not run: {why[:400]}.")
    row = next(row for row in compared if row["published"])
    if "kl_ratio" not in row:
        return finding(id, "skip", "not run", allowed, f"Not run: {row['not_run']}.")
    ratio = row["kl_ratio"]
    status = "pass" if ratio <= LARGEST_KL_RATIO else "warn" if case.subject.force else "fail"
    why = f"Its distance from the model as trained is {ratio:.2g} of what the adapter moves."
    if ratio > LARGEST_KL_RATIO:
        lost = "has lost the adapter's effect" if ratio > 0.8 else "has lost much of the adapter's effect"
        forced = " Published because --force was given." if case.subject.force else ""
        why = f"Stored as {case.subject.quantize}, the merge {lost}: {why[0].lower()}{why[1:]} {REMEDY}.{forced}"
    return finding(id, status, f"KL ratio {ratio:.3g}", allowed, why)


def _other_layers(pefts: frozenset[str], ours: frozenset[str]) -> str | None:
    """Two readings of one adapter: which parameters it changes."""
    if pefts == ours:
        return None
    example = min(pefts ^ ours)
    return (
        f"PEFT changes {counted(len(pefts), 'parameter')}; by its own files the adapter changes {len(ours)} "
        f"({example}: only {'PEFT' if example in pefts else 'the files'})."
    )


def _goes_around(trial: Trial, names: list[str]) -> Finding:
    """No rounding is at fault: merged without any, the weights answer otherwise than PEFT's unmerged model."""
    share = f"{trial.systematic:.2g} of the effect"
    why = f"Merged without any rounding, base and adapter do not answer as PEFT's unmerged model: {trial.systematic:.2g} of "
    why += "the adapter's effect (in squares) lies between them. "
    if not names:
        why += "Keep the adapter separate, beside its base."
        return finding("behaviour", "fail", share, f"≤ {SHARE:g} of it", why)
    why += (
        f"The model reads {counted(len(names), 'adapted weight')} itself, past PEFT's layer, where the adapter never acts. "
        "Train without these modules (exclude_modules), or keep the adapter separate."
    )
    return finding("behaviour", "fail", share, "none bypassed", why, names)


def _too_far(trial: Trial, floor: Json) -> str:
    return (
        f"The merged model lies {floor['ratio']:.3g} times as far from the unmerged one as rounding explains "
        f"({floor['merged']:.2g} against {floor['floor']:.2g}, {floor['metric']}; "
        f"{counted(trial.ratio.controls, 'control')}).{_starts(trial)}"
    )


def _starts(trial: Trial) -> str:
    """The module at which the distance begins, by the probe."""
    return f" It starts at {trial.starts_at}." if trial.starts_at else ""


def _other_experts(trial: Trial) -> str:
    flipped, most = trial.flips
    return (
        f"The merged model's routers would choose {counted(flipped, 'expert')} otherwise than the unmerged model's; a "
        f"rounding changes {most} at the most."
    )


def _right(trial: Trial, floor: Json) -> str:
    sentence = (
        f"As close as rounding allows: {floor['merged']:.2g} ({floor['metric']}); the adapter's effect is "
        f"{floor['adapter']:.2g}. Top-1 agreement {floor['top1_agreement']:.1%} of {floor['positions']}."
    )
    if trial.ratio.k > 1.0 and floor["merged"] > NOISE:
        sentence += f" {counted(trial.ratio.controls, 'control')}; PEFT's own numbers, rounded to nearest: "
        sentence += "not tried." if trial.ratio.nearest is None else f"K = {trial.ratio.nearest:.3g}."
    return sentence + _routed(floor["routing"])


def _routed(routing: Json | None) -> str:
    """What is to be known of a mixture of experts."""
    if routing is None:
        return ""
    if not routing["choices"] or routing["free_calls"]:
        return " Its routers' choices could not be held to the unmerged model's."
    return (
        f" Experts as the unmerged model chooses them; left free, {routing['flipped']:.2%} of the choices would differ "
        f"(controls: {routing['flipped_control']:.2%})."
    )


def _stopped(id: str, allowed: str, answer: Stopped) -> Finding:
    """A worker that could not answer: an error is a failure, a known limit is a skip."""
    if answer.status == "error":
        return finding(id, "fail", "error", allowed, f"The model could not be run: {answer.why[:400]}")
    return finding(id, "skip", "not run", allowed, f"Not run: {answer.why}.")
