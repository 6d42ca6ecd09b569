"""config.json says what the base's says, but for what the merge declares."""

from __future__ import annotations

from typing import Any

from bot import trained_base
from bot.checks.case import Case
from bot.checks.expected.adapter_claims import adapter_claims
from bot.checks.expected.config_changes import Declared, at
from bot.checks.finding import counted, finding, graded
from bot.checks.folder.form_files import form_files
from bot.checks.folder.special_tokens import declared_tokens
from bot.checks.reading.checkpoint import TORCH_NAMES, quantization_of
from bot.errors import Refused
from bot.records import Finding, Json

DTYPE_NAMES = frozenset({"dtype", "torch_dtype"})  # transformers 5 writes dtype, 4 wrote torch_dtype

# What a foreign merge may rewrite without changing the model, and why. Matched against the last part of the path.
TOLERATED = {
    "transformers_version": "names the version that saved it",
    "_name_or_path": "names where it was loaded from",
    "use_cache": "changes speed, not outputs; trainers switch it off",
    "_attn_implementation_autoset": "a note of transformers to itself",
    "dtype": "spelled torch_dtype before transformers 5",
    "torch_dtype": "spelled dtype since transformers 5",
    "unsloth_version": "names the trainer",
    "unsloth_fixed": "names the trainer",
}
QUANTIZATION = "quantization_config"
Difference = tuple[str, Any, Any]  # dotted path, before, after
SAME = "config.json says what the base's does."
ROPE = "rope_parameters"  # transformers 5 writes rope_theta and rope_scaling as one map
OLD_ROPE = frozenset({"rope_theta", "rope_scaling"})


def config(case: Case) -> Finding:
    """No drift from the base's config.json but the dtype, where one was asked for, and what the merge must declare."""
    merged = case.merged_config
    if merged is None:
        return finding("config", "fail", "unreadable", "no drift", "The folder has no readable config.json.")
    base, foreign = case.base_config, not case.subject.ours
    if foreign:
        base, merged = unite_rope(base), unite_rope(merged)
    changes = _changes(case)
    fails, warns = undeclared(merged, changes), list[str]()
    if foreign:  # the author may have left the base's tokens as they are
        left_alone = tuple(each for each in declared_tokens(case) if at(merged, each.path) == at(base, each.path))
        warns = undeclared(merged, left_alone)
        fails = [sentence for sentence in fails if sentence not in warns]
    drift = [each for each in differences(base, merged) if not _is_expected(case, changes, each)]
    changed = _changed_for_transformers(base, merged, [each for each in drift if _matters(each)]) if foreign else drift
    fails += [_sentence(each) for each in drift if each in changed]
    warns += [_sentence(each) for each in drift if each not in changed]
    left = quantization_left(merged)
    if left and case.subject.quantize == "none":
        fails.insert(0, f"{left} is left in config.json, and the weights are not quantised: it cannot be loaded.")
    elif not left and case.subject.quantize != "none":
        fails.insert(0, f"config.json has no {QUANTIZATION}, and the weights are quantised: they cannot be loaded.")
    elif case.subject.quantize == "same" and quantization_of(merged) != quantization_of(base):
        fails.insert(0, f"{left} is not the base's, and the weights are stored in the base's own form.")
    (warns if foreign else fails).extend(form_files(case))
    reasons = "; ".join(dict.fromkeys(change.why for change in changes))
    right = (counted(len(changes), "change"), f"Declared: {reasons}.") if changes else ("no drift", SAME)
    return graded("config", "as declared" if changes else "no drift", right, fails=fails, warns=warns)


def _is_expected(case: Case, changes: tuple[Declared, ...], difference: Difference) -> bool:
    path, _, after = difference
    if QUANTIZATION in path.split("."):
        return True  # what must stand there, and what must not, is said by itself
    return declared(path, after, case.subject.dtype) or any(change.covers(path) for change in changes)


def _sentence(difference: Difference) -> str:
    path, before, after = difference
    return f"{path}: {show(before)} → {show(after)}"


def _matters(difference: Difference) -> bool:
    """Whether a field of a foreign merge may change what the model is: neither a new one, nor one without meaning, nor a
    padding where the base has none."""
    path, before, _ = difference
    name = path.rsplit(".", 1)[-1]
    return before is not ABSENT and name not in TOLERATED and not (name == "pad_token_id" and before is None)


def _changed_for_transformers(base: Json, merged: Json, drift: list[Difference]) -> list[Difference]:
    """Those that are still there once transformers has read both: it drops and fills in fields that make no difference (the
    `sliding_window` of a Qwen2 that does not use it)."""
    if not drift:
        return drift
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        kind = CONFIG_MAPPING[base["model_type"]]
        read = differences(kind.from_dict(dict(base)).to_dict(), kind.from_dict(dict(merged)).to_dict())
    except Exception:  # a class raises whatever it likes for a config that it cannot read
        return drift
    still = [f"{path}." for path, _, _ in read]
    return [each for each in drift if any(f.startswith(f"{each[0]}.") or f"{each[0]}.".startswith(f) for f in still)]


def base_weights(case: Case) -> Finding:
    """The weights that are merged into are of the kind that the adapter was trained on, as far as its repo tells."""
    four_bits = case.subject.base_weights == "simulate-nf4" or quantization_of(case.base_config) is not None
    measured = "in four bits" if case.subject.base_weights == "simulate-nf4" else "quantised" if four_bits else "plain"
    trained_on = () if four_bits else case.subject.trained
    right = (measured, "Nothing says that the adapter was trained on other weights.")
    return graded("base-weights", "as trained", right, warns=map(trained_base.warning, trained_on))


def _changes(case: Case) -> tuple[Declared, ...]:
    """What the adapter makes necessary. At level files no weight is read, and so no adapter: then nothing is expected
    unless something differs."""
    merged, tokens = case.merged_config or {}, declared_tokens(case)
    if case.subject.level == "files" and all(
        declared(path, after, case.subject.dtype) or QUANTIZATION in path.split(".")
        for path, _, after in differences(case.base_config, merged)
    ):
        return tokens
    plain = (*_plain(case), *tokens)
    try:
        return (*plain, *case.once(adapter_claims).declared)
    except Refused:
        return plain  # it is no adapter: the checks of the weights say so


def _plain(case: Case) -> tuple[Declared, ...]:
    """A quantised base may leave it to its quantization_config of what dtype its weights are; a plain model says it."""
    base = case.base_config
    if quantization_of(base) is None or not case.subject.ours or DTYPE_NAMES & base.keys():
        return ()
    if case.subject.quantize == "same" and not DTYPE_NAMES & (case.merged_config or {}).keys():
        return ()  # the form stays, and with it what its config says
    from bot.checks.reading.quantised import dense_dtype

    wanted = case.subject.dtype if case.subject.dtype != "auto" else TORCH_NAMES[dense_dtype(base)]
    return (Declared(path="dtype", value=wanted, why="the weights are no longer quantised"),)


def undeclared(merged: Json, changes: tuple[Declared, ...]) -> list[str]:
    """Changes that the merge makes necessary, and that config.json does not say."""
    return [f"{change.path} is {show(at(merged, change.path))}, and must be {show(change.value)}: {change.why}."
            for change in changes if at(merged, change.path) != change.value]  # fmt: skip


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def differences(before: Any, after: Any, path: str = "") -> list[Difference]:
    """Leaves at which two JSON values differ, as (dotted path, before, after); lists are leaves."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            difference
            for key in sorted(before.keys() | after.keys())
            for difference in differences(before.get(key, ABSENT), after.get(key, ABSENT), f"{path}.{key}".lstrip("."))
        ]
    same = before == after and isinstance(before, bool) == isinstance(after, bool)  # in JSON, 1 is not true
    return [] if same else [(path, before, after)]


def declared(path: str, after: Any, dtype: str) -> bool:
    """A difference that the request asked for: the dtype, here or in a nested config."""
    name = path.rsplit(".", 1)[-1]
    return dtype != "auto" and name in DTYPE_NAMES and (after == dtype or after is ABSENT)


def quantization_left(config: Json, path: str = "") -> str | None:
    """The dotted path of a quantization_config, at any depth."""
    for key, value in config.items():
        here = f"{path}.{key}".lstrip(".")
        if key == "quantization_config" and value:
            return here
        if isinstance(value, dict) and (deeper := quantization_left(value, here)):
            return deeper
    return None


def unite_rope(config: Json) -> Json:
    """The same config with rope_theta and rope_scaling written the way transformers 5 writes them, nested ones too."""
    nested = {key for key, value in config.items() if isinstance(value, dict) and key != ROPE}
    united = {key: unite_rope(value) if key in nested else value for key, value in config.items()}
    if ROPE in united or not OLD_ROPE & united.keys():
        return united
    scaling = dict(united.pop("rope_scaling", None) or {})
    if "type" in scaling:
        scaling.setdefault("rope_type", scaling.pop("type"))
    scaling.setdefault("rope_type", "default")
    theta = {"rope_theta": united.pop("rope_theta")} if "rope_theta" in united else {}  # else it is the class's
    united[ROPE] = {**scaling, **theta}
    return united


def show(value: Any) -> str:
    """A value, short enough for one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
