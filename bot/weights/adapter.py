"""An adapter's config and keys: which modules it changes, with which rank and scaling, and what in it we refuse.

The rules are PEFT's (peft.tuners.lora): scaling is alpha / r, or alpha / √r for rsLoRA; `rank_pattern` and
`alpha_pattern` override r and alpha for the modules that they match.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bot.records import Json, Refusal, Stored

KEEP_SEPARATE = "Keep the adapter separate, or train it without that."
LORA_KEY = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<name>[^.]+))?\.weight$")

# Adapter keys that belong to something this version does not merge: (pattern, code, what it is).
OTHER_KEYS = (
    (re.compile(r"\.lora_magnitude_vector"), "dora", "DoRA magnitudes"),
    (re.compile(r"\.lora_embedding_[AB]"), "embedding-lora", "LoRA on an embedding"),
    (re.compile(r"\.lora_B(\.[^.]+)?\.bias$"), "lora-bias", "LoRA biases"),
    (re.compile(r"trainable_tokens"), "trainable-tokens", "trained single tokens"),
    (re.compile(r"\.base_layer\."), "target-parameters", "LoRA on bare parameters"),
    (re.compile(r"\.bias$"), "bias", "trained biases"),
    (re.compile(r"\.weight$"), "modules-to-save", "whole trained modules"),
)

# LoraConfig fields that change what a merge must do and that this version does not merge: (field, code, what it is).
REFUSED_FIELDS = (
    ("use_dora", "dora", "DoRA"),
    ("lora_bias", "lora-bias", "LoRA biases"),
    ("modules_to_save", "modules-to-save", "whole trained modules (modules_to_save)"),
    ("trainable_token_indices", "trainable-tokens", "trained single tokens"),
    ("layer_replication", "layer-replication", "replicated layers"),
    ("target_parameters", "target-parameters", "LoRA on bare parameters"),
    ("alora_invocation_tokens", "alora", "aLoRA, whose delta depends on the prompt and has no merged form"),
    ("use_qalora", "qalora", "QALoRA"),
    ("use_bdlora", "bdlora", "BD-LoRA"),
    ("arrow_config", "arrow", "Arrow routing, which chooses per token and has no merged form"),
    ("kasa_config", "kasa", "KaSA"),
    ("monteclora_config", "monteclora", "MonteCLoRA"),
    ("velora_config", "velora", "VeLoRA"),
    ("megatron_config", "megatron", "Megatron parallel layers"),
)
# Initialisations that change the base weights before training: the adapter is relative to that other base.
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "mica", "kasa", "loftq", "lora_ga")

# Fields that say how the adapter was trained or found, and leave the merge alone.
SILENT_FIELDS = frozenset(
    "alpha_pattern auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying eva_config "
    "exclude_modules fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config "
    "lora_alpha lora_dropout lora_ga_config megatron_core peft_type peft_version qalora_group_size r rank_pattern "
    "revision runtime_config target_modules task_type use_rslora".split()
)


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What adapter_config.json says about scaling."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    fan_in_fan_out: bool

    @property
    def method(self) -> str:
        return "rsLoRA" if self.rslora else "LoRA"


@dataclass(frozen=True, kw_only=True)
class LoraPair:
    """The two matrices of one module: A is rank × in, B is out × rank."""

    module: str
    a: Stored
    b: Stored

    @property
    def keys(self) -> tuple[str, str]:
        return self.a.key, self.b.key


def read_settings(config: Json) -> tuple[LoraSettings | None, list[Refusal]]:
    """The scaling rules of a LoRA config, or the refusals that its other fields force."""
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        return None, [_wrong_method(peft_type)]
    refusals = _refused_fields(config)
    try:
        settings = LoraSettings(
            rank=_positive_int(config.get("r", 8)),
            alpha=_finite(config.get("lora_alpha", 8)),
            rslora=bool(config.get("use_rslora", False)),
            rank_pattern={_pattern(k): _positive_int(v) for k, v in (config.get("rank_pattern") or {}).items()},
            alpha_pattern={_pattern(k): _finite(v) for k, v in (config.get("alpha_pattern") or {}).items()},
            fan_in_fan_out=bool(config.get("fan_in_fan_out", False)),
        )
    except (TypeError, ValueError, AttributeError, re.error) as error:
        reason = f"adapter_config.json cannot be read as a LoRA config: {error}."
        return None, [*refusals, Refusal(code="bad-config", reason=reason, remedy="Save the adapter again with PEFT.")]
    return settings, refusals


def scaling_of(settings: LoraSettings, module: str) -> tuple[int, float, float]:
    """(rank, alpha, scaling) of one module, by PEFT's own matching of patterns: the first pattern that matches wins."""
    rank = _matched(settings.rank_pattern, module, settings.rank)
    alpha = _matched(settings.alpha_pattern, module, settings.alpha)
    return rank, alpha, alpha / (math.sqrt(rank) if settings.rslora else rank)


def pair_up(tensors: Iterable[Stored]) -> tuple[list[LoraPair], list[Refusal]]:
    """Group adapter tensors into LoRA pairs; every tensor ends up in a pair or in a refusal."""
    sides: dict[str, dict[str, Stored]] = {}
    names: set[str | None] = set()
    others: dict[tuple[str, str], list[str]] = {}
    for tensor in tensors:
        match = LORA_KEY.match(tensor.key)
        if match and ".base_layer." not in tensor.key:
            names.add(match["name"])
            sides.setdefault(match["module"], {})
            if match["side"] in sides[match["module"]]:
                others.setdefault(("repeated-key", "a second LoRA matrix for the same module"), []).append(tensor.key)
            else:
                sides[match["module"]][match["side"]] = tensor
        else:
            others.setdefault(_kind(tensor.key), []).append(tensor.key)
    refusals = [_other_keys(code, what, keys) for (code, what), keys in others.items()]
    if len(names) > 1:
        reason = f"The adapter file holds several adapters: {', '.join(sorted(map(str, names)))}."
        refusals.append(Refusal(code="several-adapters", reason=reason, remedy="Save them one by one."))
    pairs = [LoraPair(module=m, a=s["A"], b=s["B"]) for m, s in sorted(sides.items()) if s.keys() == {"A", "B"}]
    halves = [tensor.key for s in sides.values() if s.keys() != {"A", "B"} for tensor in s.values()]
    if halves:
        reason = f"{len(halves)} adapter tensors lack their other half, e.g. {halves[0]}."
        refusals.append(
            Refusal(code="half-a-pair", reason=reason, remedy="Save the adapter again.", keys=tuple(halves))
        )
    return pairs, refusals


def _wrong_method(peft_type: Any) -> Refusal:
    if not isinstance(peft_type, str):
        return Refusal(
            code="unknown-peft-type",
            reason="adapter_config.json names no peft_type.",
            remedy="Save the adapter with PEFT, so that its config says what it is.",
        )
    return Refusal(
        code="unknown-peft-type",
        reason=f"The adapter's peft_type is {peft_type!r}; this version merges LORA only.",
        remedy="Keep the adapter separate, or merge it with PEFT itself.",
    )


def _refused_fields(config: Json) -> list[Refusal]:
    refusals = [
        Refusal(code=code, reason=f"The adapter uses {what}, which this version does not merge.", remedy=KEEP_SEPARATE)
        for field, code, what in REFUSED_FIELDS
        if config.get(field)
    ]
    if config.get("bias", "none") != "none":
        reason = f"The adapter trained biases (bias={config['bias']!r}), which this version does not merge."
        refusals.append(Refusal(code="bias", reason=reason, remedy=KEEP_SEPARATE))
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        refusals.append(
            Refusal(
                code="changed-base",
                reason=f"The adapter was initialised with {init!r}, which trains against a changed base.",
                remedy="Save it as a plain LoRA (PEFT: path_initial_model_for_weight_conversion), then merge that.",
            )
        )
    known = SILENT_FIELDS | {field for field, _, _ in REFUSED_FIELDS}
    strange = sorted(field for field, value in config.items() if field not in known and value)
    if strange:
        refusals.append(
            Refusal(
                code="unknown-setting",
                reason=f"adapter_config.json has settings that this version does not know: {', '.join(strange)}.",
                remedy="Use a newer adapter-merge, or remove them if they did not shape the weights.",
            )
        )
    return refusals


def _other_keys(code: str, what: str, keys: list[str]) -> Refusal:
    reason = f"The adapter holds {what} ({len(keys)} tensors, e.g. {keys[0]}), which this version does not merge."
    return Refusal(code=code, reason=reason, remedy=KEEP_SEPARATE, keys=tuple(keys))


def _kind(key: str) -> tuple[str, str]:
    for pattern, code, what in OTHER_KEYS:
        if pattern.search(key):
            return code, what
    return "unknown-key", "tensors of an unknown kind"


def _matched(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _pattern(text: str) -> str:
    re.compile(rf"(.*\.)?({text})$")
    return text


def _positive_int(value: Any) -> int:
    if type(value) is not int or value <= 0:
        raise ValueError(f"a rank must be a positive whole number, not {value!r}")
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"an alpha must be a finite number, not {value!r}")
    return float(value)
