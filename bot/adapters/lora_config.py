"""adapter_config.json of a LoRA or trainable-tokens adapter, read for plan and combine alike.

The rules are PEFT's (peft.tuners.lora): scaling is alpha / r, or alpha / √r for rsLoRA; `rank_pattern` and `alpha_pattern`
override r and alpha for the names whose end they match; the first match wins.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bot.records import Json, Refusal
from bot.untrusted.patterns import check, first

SAVE_AGAIN = "Save the adapter again with PEFT."
ENDING = r"(.*\.)?({})$"  # how PEFT looks for a pattern in a module's name

# LoraConfig fields that say how the adapter was trained or found, or that are read here or by combine.
LORA_FIELDS = frozenset(
    "alora_invocation_tokens alpha_pattern arrow_config auto_mapping base_model_name_or_path bias corda_config "
    "ensure_weight_tying eva_config exclude_modules fan_in_fan_out inference_mode init_lora_weights "
    "kasa_config layer_replication layers_pattern layers_to_transform loftq_config lora_alpha lora_bias lora_dropout "
    "lora_ga_config megatron_config megatron_core modules_to_save monteclora_config peft_type peft_version "
    "qalora_group_size r rank_pattern revision runtime_config target_modules target_parameters task_type "
    "trainable_token_indices use_bdlora use_dora use_qalora use_rslora velora_config".split()
)
KNOWN_FIELDS = LORA_FIELDS | {"init_weights", "token_indices"}  # with those of TrainableTokensConfig


@dataclass(frozen=True, kw_only=True)
class LoraScaling:
    """The fields that give each module its rank and scaling."""

    rank: int = 8
    alpha: float = 8.0
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LoraSettings(LoraScaling):
    """What adapter_config.json says of a LoRA or a trainable-tokens adapter."""

    dora: bool = False
    bias: str = "none"
    saved: tuple[str, ...] = ()  # modules_to_save
    tokens: tuple[int, ...] | Mapping[str, tuple[int, ...]] = ()
    parameters: tuple[str, ...] = ()  # target_parameters
    version: str | None = None  # peft_version
    tying: bool = False  # ensure_weight_tying
    replication: tuple[tuple[int, int], ...] = ()

    @property
    def method(self) -> str:
        names = ("DoRA" if self.dora else "", "rsLoRA" if self.rslora else "")
        return ", ".join(filter(None, names)) or "LoRA"


def read_settings(config: Json) -> tuple[LoraSettings, list[Refusal]]:
    """The settings, and the refusals of a config that cannot be read or says what is not known here."""
    refusals = unknown_settings(config, KNOWN_FIELDS)
    try:
        return _settings(config), refusals
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"adapter_config.json cannot be read as a LoRA config: {error}."
        return LoraSettings(), [*refusals, Refusal(code="bad-config", reason=reason, remedy=SAVE_AGAIN)]


def stated_class(config: Json) -> str | None:
    """The class of model that the config names: PEFT writes it where it was given no task. It is a stranger's word, and only
    ever compared with the names of known classes."""
    mapping = config.get("auto_mapping")
    named = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return named if isinstance(named, str) else None


def unknown_settings(config: Json, known: Collection[str]) -> list[Refusal]:
    """The refusal of fields that are switched on and not known; none where there are none."""
    strange = sorted(name for name, value in config.items() if name not in known and value)
    if not strange:
        return []
    reason = f"adapter_config.json has settings that this version does not know: {', '.join(strange)}."
    remedy = "Use a newer adapter-merge, or remove them if they did not shape the weights."
    return [Refusal(code="unknown-setting", reason=reason, remedy=remedy)]


def _settings(config: Json) -> LoraSettings:
    tokens = config.get("trainable_token_indices") or config.get("token_indices") or ()
    return LoraSettings(
        **vars(read_scaling(config)),
        dora=bool(config.get("use_dora", False)),
        bias=str(config.get("bias", "none")),
        saved=names_listed(config.get("modules_to_save")),
        tokens={name: _rows(rows) for name, rows in tokens.items()} if isinstance(tokens, dict) else _rows(tokens),
        parameters=names_listed(config.get("target_parameters")),
        version=version if isinstance(version := config.get("peft_version"), str) else None,
        tying=bool(config.get("ensure_weight_tying", False)),
        replication=tuple((_index(low), _index(high)) for low, high in config.get("layer_replication") or ()),
    )


def read_scaling(config: Json) -> LoraScaling:
    """Raises TypeError, ValueError, AttributeError or OverflowError for fields that are not what they should be."""
    return LoraScaling(
        rank=_positive_int(config.get("r", 8)),
        alpha=_finite(config.get("lora_alpha", 8)),
        rslora=bool(config.get("use_rslora", False)),
        rank_pattern={k: _positive_int(v) for k, v in _patterns(config, "rank_pattern")},
        alpha_pattern={k: _finite(v) for k, v in _patterns(config, "alpha_pattern")},
    )


def scaling_of(settings: LoraScaling, name: str) -> tuple[int, float, float]:
    """(rank, alpha, scaling) of one module, by PEFT's own matching of patterns: the first pattern that matches wins."""
    rank = _matched(settings.rank_pattern, name, settings.rank)
    alpha = _matched(settings.alpha_pattern, name, settings.alpha)
    return rank, alpha, alpha / (math.sqrt(rank) if settings.rslora else rank)


def is_saved(settings: LoraSettings, parameter: str) -> bool:
    """Whether a parameter belongs to a module of modules_to_save; PEFT compares the ends of names."""
    parts = parameter.split(".")
    modules = (".".join(parts[:count]) for count in range(1, len(parts)))
    return any(module.endswith(name) for module in modules for name in settings.saved)


def _matched(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    match = first(patterns, name, ENDING)
    return default if match is None else list(patterns.values())[match.at]


def _patterns(config: Json, name: str) -> Iterable[tuple[str, Any]]:
    """Raises ValueError where one cannot be compiled, and Refused where it would not come to an end."""
    patterns = config.get(name) or {}
    check(patterns.keys(), ENDING)
    return patterns.items()


def names_listed(value: Any) -> tuple[str, ...]:
    """The names of a config's field, which may hold a single one or none. Raises ValueError for anything else."""
    names = [value] if isinstance(value, str) else list(value or ())
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{value!r} is not a list of names")
    return tuple(names)


def _rows(value: Any) -> tuple[int, ...]:
    return tuple(_index(row) for row in value)


def _index(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"an index must be a whole number, not {value!r}")
    return value


def _positive_int(value: Any) -> int:
    if type(value) is not int or value <= 0:
        raise ValueError(f"a rank must be a positive whole number, not {value!r}")
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"an alpha must be a finite number, not {value!r}")
    return float(value)
