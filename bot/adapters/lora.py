"""An adapter of the LoRA family, read from its config and its keys: what it changes, before the base is known.

The rules are PEFT's (peft.tuners.lora, peft.utils.other): scaling is alpha / r, or alpha / √r for rsLoRA;
`rank_pattern` and `alpha_pattern` override r and alpha for the names that they match. Keys are read in every form that
PEFT has written since 0.6 and that trainers wrap around it (DDP, FSDP, torch.compile, an adapter's name in the key).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bot.records import Json, Refusal, Stored
from bot.untrusted.patterns import check, first

SAVE_AGAIN = "Save the adapter again with PEFT."
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
PREFIX = "base_model.model."
ENDING = r"(.*\.)?({})$"  # how PEFT looks for a pattern in a module's name

# (kind, pattern on the bare key). The first that matches says what a tensor is; `name` is an adapter's name.
KEYS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("lora", re.compile(r"(?P<module>.+?)\.lora_(?P<side>[AB])(?:\.(?P<name>[^.]+))?\.weight")),
    ("bias", re.compile(r"(?P<module>.+?)\.lora_B(?:\.(?P<name>[^.]+))?\.bias")),
    ("embedding", re.compile(r"(?P<module>.+?)\.lora_embedding_(?P<side>[AB])(?:\.(?P<name>[^.]+))?")),
    ("magnitude", re.compile(r"(?P<module>.+?)\.lora_magnitude_vector(?:\.(?P<name>(?!weight$)[^.]+))?(?:\.weight)?")),
    ("tokens", re.compile(r"(?P<module>.+?)\.(?:token_adapter\.)?trainable_tokens_delta(?:\.(?P<name>[^.]+))?")),
    ("ignored", re.compile(r".+\.trainable_tokens_original(?:\..+)?|.+\.original_module\..+")),
    ("saved", re.compile(r"(?P<module>.+?)\.modules_to_save(?:\.(?P<name>default))?\.(?P<rest>.+)")),
    ("carried", re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.base_layer\.(?P<rest>weight|bias)")),
    ("plain", re.compile(r"(?P<module>.+)\.(?P<rest>[^.]+)")),
)  # fmt: skip

# LoraConfig fields that say how the adapter was trained or found, or that are read below.
KNOWN_FIELDS = frozenset(
    "alora_invocation_tokens alpha_pattern arrow_config auto_mapping base_model_name_or_path bias corda_config "
    "ensure_weight_tying eva_config exclude_modules fan_in_fan_out inference_mode init_lora_weights init_weights "
    "kasa_config layer_replication layers_pattern layers_to_transform loftq_config lora_alpha lora_bias lora_dropout "
    "lora_ga_config megatron_config megatron_core modules_to_save monteclora_config peft_type peft_version "
    "qalora_group_size r rank_pattern revision runtime_config target_modules target_parameters task_type token_indices "
    "trainable_token_indices use_bdlora use_dora use_qalora use_rslora velora_config".split()
)


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What adapter_config.json says of a LoRA or a trainable-tokens adapter."""

    rank: int = 8
    alpha: float = 8.0
    rslora: bool = False
    dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
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


@dataclass(frozen=True, kw_only=True)
class LoraPair:
    """The two matrices of one module. linear: A rank × in, B out × rank; embedding: A rank × rows, B columns × rank.

    `depth`: how many LoRA wrappers of bare parameters lie around this one (`target_parameters`).
    """

    module: str
    kind: Literal["linear", "embedding"]
    a: Stored
    b: Stored
    magnitude: Stored | None = None
    depth: int = 0


@dataclass(frozen=True, kw_only=True)
class WholeTensor:
    """A whole tensor. `trained`: it takes the module's own place (modules_to_save, trained biases); else it is a copy of
    the base's parameter, which PEFT loads over it, tied heads included."""

    parameter: str
    values: Stored
    trained: bool


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """New values for some rows of an embedding."""

    module: str
    rows: tuple[int, ...]
    values: Stored


@dataclass(frozen=True, kw_only=True)
class Changes:
    """All that an adapter says; every key of it is in one of these."""

    pairs: tuple[LoraPair, ...] = ()
    biases: tuple[tuple[str, Stored], ...] = ()  # (module, lora_B's bias)
    wholes: tuple[WholeTensor, ...] = ()
    tokens: tuple[TokenRows, ...] = ()
    ignored: tuple[Stored, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def read_settings(config: Json) -> tuple[LoraSettings, list[Refusal]]:
    """The settings, and the refusals of a config that cannot be read or says what is not known here."""
    strange = sorted(name for name, value in config.items() if name not in KNOWN_FIELDS and value)
    refusals = []
    if strange:
        reason = f"adapter_config.json has settings that this version does not know: {', '.join(strange)}."
        remedy = "Use a newer adapter-merge, or remove them if they did not shape the weights."
        refusals.append(Refusal(code="unknown-setting", reason=reason, remedy=remedy))
    try:
        return _settings(config), refusals
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"adapter_config.json cannot be read as a LoRA config: {error}."
        return LoraSettings(), [*refusals, Refusal(code="bad-config", reason=reason, remedy=SAVE_AGAIN)]


def _settings(config: Json) -> LoraSettings:
    tokens = config.get("trainable_token_indices") or config.get("token_indices") or ()
    return LoraSettings(
        rank=_positive_int(config.get("r", 8)),
        alpha=_finite(config.get("lora_alpha", 8)),
        rslora=bool(config.get("use_rslora", False)),
        dora=bool(config.get("use_dora", False)),
        rank_pattern={k: _positive_int(v) for k, v in _patterns(config, "rank_pattern")},
        alpha_pattern={k: _finite(v) for k, v in _patterns(config, "alpha_pattern")},
        bias=str(config.get("bias", "none")),
        saved=names_listed(config.get("modules_to_save")),
        tokens={name: _rows(rows) for name, rows in tokens.items()} if isinstance(tokens, dict) else _rows(tokens),
        parameters=names_listed(config.get("target_parameters")),
        version=version if isinstance(version := config.get("peft_version"), str) else None,
        tying=bool(config.get("ensure_weight_tying", False)),
        replication=tuple((_index(low), _index(high)) for low, high in config.get("layer_replication") or ()),
    )


def scaling_of(settings: LoraSettings, name: str) -> tuple[int, float, float]:
    """(rank, alpha, scaling) of one module, by PEFT's own matching of patterns: the first pattern that matches wins."""
    rank = _matched(settings.rank_pattern, name, settings.rank)
    alpha = _matched(settings.alpha_pattern, name, settings.alpha)
    return rank, alpha, alpha / (math.sqrt(rank) if settings.rslora else rank)


def bare_key(key: str) -> str:
    """A key without the names of what was wrapped around the model."""
    return WRAPPERS.sub("", key.removeprefix(PREFIX)).removeprefix(PREFIX)


def is_saved(settings: LoraSettings, parameter: str) -> bool:
    """Whether a parameter belongs to a module of modules_to_save; PEFT compares the ends of names."""
    module, found = parameter, False
    while "." in module and not found:
        module = module.rpartition(".")[0]
        found = any(module.endswith(name) for name in settings.saved)
    return found


def read_changes(tensors: Iterable[Stored], settings: LoraSettings) -> Changes:
    """Sort an adapter's tensors into what they do; what cannot be sorted is a refusal that claims it."""
    reader = _Reader(settings)
    for tensor in tensors:
        reader.take(tensor)
    return reader.changes()


class _Reader:
    """Collects the tensors of one adapter."""

    def __init__(self, settings: LoraSettings) -> None:
        self.settings = settings
        self.names: set[str] = set()
        self.sides: dict[tuple[str, str], dict[str, Stored]] = {}  # (kind, module) → side → tensor
        self.biases: list[tuple[str, Stored]] = []
        self.wholes: list[WholeTensor] = []
        self.tokens: list[TokenRows] = []
        self.ignored: list[Stored] = []
        self.refused: dict[tuple[str, str, str], list[str]] = {}  # (code, sentence, remedy) → keys

    def take(self, tensor: Stored) -> None:
        bare = bare_key(tensor.key)
        kind, match = next(
            (kind, match) for kind, pattern in KEYS if (match := pattern.fullmatch(bare)) or kind == "plain"
        )
        if match is None:
            self._refuse("unknown-key", "are of an unknown kind", tensor)
            return
        found = match.groupdict()
        if found.get("name"):
            self.names.add(found["name"])
        module, rest = found.get("module") or "", found.get("rest") or ""
        match kind:
            case "lora" | "embedding":
                self._side(kind, module, found["side"], tensor)
            case "magnitude":
                self._side("magnitude", module, "M", tensor)
            case "bias":
                self.biases.append((module, tensor))
            case "tokens":
                self._tokens(module, tensor)
            case "ignored":
                self.ignored.append(tensor)
            case _:
                self._whole(kind, f"{module}.{rest}", tensor)

    def _side(self, kind: str, module: str, side: str, tensor: Stored) -> None:
        sides = self.sides.setdefault((kind, module), {})
        if side in sides:
            self._refuse("repeated-key", "are a second LoRA matrix for the same module", tensor)
        else:
            sides[side] = tensor

    def _whole(self, kind: str, parameter: str, tensor: Stored) -> None:
        if kind == "plain" and not parameter.endswith((".weight", ".bias")) and not is_saved(self.settings, parameter):
            self._refuse("unknown-key", "are of an unknown kind", tensor)
            return
        trained = kind == "saved" or (kind == "plain" and is_saved(self.settings, parameter))
        trained = trained or (parameter.endswith(".bias") and self.settings.bias != "none")
        self.wholes.append(WholeTensor(parameter=parameter, values=tensor, trained=trained))

    def _tokens(self, module: str, tensor: Stored) -> None:
        tokens = self.settings.tokens
        named = tokens.items() if isinstance(tokens, Mapping) else [("", tokens)]
        rows: tuple[int, ...] = next((rows for name, rows in named if module.endswith(name)), ())
        if len(rows) != (tensor.shape[0] if tensor.shape else 0) or len(set(rows)) != len(rows):
            self._refuse("trainable-tokens", "have another number of rows than the config has token indices", tensor)
        else:
            self.tokens.append(TokenRows(module=module, rows=rows, values=tensor))

    def _refuse(self, code: str, sentence: str, tensor: Stored, remedy: str = SAVE_AGAIN) -> None:
        self.refused.setdefault((code, sentence, remedy), []).append(tensor.key)

    def changes(self) -> Changes:
        pairs = []
        for (kind, module), sides in sorted(self.sides.items()):
            if kind == "magnitude":
                if not any((other, module) in self.sides for other in ("lora", "embedding")):
                    self._refuse("half-a-pair", "lack their other half", sides["M"])
            elif sides.keys() != {"A", "B"}:
                for tensor in sides.values():
                    self._refuse("half-a-pair", "lack their other half", tensor)
            else:
                pairs.append(self._pair(kind, module, sides))
        refusals = [
            Refusal(
                code=code,
                reason=f"{len(keys)} adapter tensors {sentence}, e.g. {keys[0]}.",
                remedy=remedy,
                keys=tuple(keys),
            )
            for (code, sentence, remedy), keys in self.refused.items()
        ]
        if len(self.names) > 1:
            reason = f"The adapter file holds several adapters: {', '.join(sorted(self.names))}."
            refusals.append(Refusal(code="several-adapters", reason=reason, remedy="Save them one by one."))
        return Changes(
            pairs=tuple(pairs),
            biases=tuple(self.biases),
            wholes=tuple(self.wholes),
            tokens=tuple(self.tokens),
            ignored=tuple(self.ignored),
            refusals=tuple(refusals),
        )

    def _pair(self, kind: str, module: str, sides: dict[str, Stored]) -> LoraPair:
        depth = 0
        while module.endswith(".base_layer"):
            module, depth = module.removesuffix(".base_layer"), depth + 1
        magnitude = self.sides.get(("magnitude", module), {}).get("M")
        return LoraPair(
            module=module,
            kind="linear" if kind == "lora" else "embedding",
            a=sides["A"],
            b=sides["B"],
            magnitude=magnitude,
            depth=depth,
        )


def _matched(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    found = first(patterns, name, ENDING)
    return default if found is None else list(patterns.values())[found.at]


def _patterns(config: Json, name: str) -> Iterable[tuple[str, Any]]:
    """Raises ValueError where one cannot be compiled, and Refused where it would not come to an end."""
    found = config.get(name) or {}
    check(found.keys(), ENDING)
    return found.items()


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
