"""One of the adapters that are to be combined, read from its config and header; and what in it cannot be combined.

The rules are PEFT's (peft.tuners.lora): scaling is alpha / r, or alpha / √r for rsLoRA; `rank_pattern` and
`alpha_pattern` override r and alpha for the modules whose name they match the end of; the first match wins.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from bot.records import Json, Refusal, Source, Stored
from bot.untrusted.patterns import check, first

Kind = Literal["weight", "embedding"]
FLOATS = frozenset({"BF16", "F16", "F32", "F64"})
ENDING = r"(.*\.)?({})$"  # how PEFT looks for a pattern in a module's name
KEEP_SEPARATE = "Leave that adapter out, or merge the adapters one after the other."

# What wraps a model puts its name into the keys; PEFT takes the prefix off again when it loads.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")
PREFIX = re.compile(r"^(?:module\.)*(?:base_model\.model\.)?(?:module\.)*")
HALF = re.compile(
    r"(?P<module>.+)\.lora_(?:(?P<side>[AB])(?:\.(?P<name>[^.]+))?\.weight"
    r"|embedding_(?P<table>[AB])(?:\.(?P<table_name>[^.]+))?)"
)
COPY = re.compile(r"(?P<module>(?:(?!\.lora_).)+?)(?:\.base_layer)?\.weight")

# LoraConfig fields whose effect is not the sum that a combination is made of: (field, code, what it is).
BARRED_FIELDS = (
    ("use_dora", "dora", "DoRA, which scales whole rows of the weight"),
    ("lora_bias", "lora-bias", "LoRA biases"),
    ("modules_to_save", "modules-to-save", "whole trained modules (modules_to_save)"),
    ("trainable_token_indices", "trainable-tokens", "trained single tokens"),
    ("target_parameters", "target-parameters", "LoRA on bare parameters"),
    ("layer_replication", "layer-replication", "replicated layers"),
    ("alora_invocation_tokens", "alora", "aLoRA, whose effect depends on the prompt"),
    ("use_qalora", "qalora", "QALoRA"),
    ("use_bdlora", "bdlora", "BD-LoRA"),
    ("arrow_config", "arrow", "Arrow routing, which chooses per token"),
    ("kasa_config", "kasa", "KaSA"),
    ("monteclora_config", "monteclora", "MonteCLoRA"),
    ("velora_config", "velora", "VeLoRA"),
    ("megatron_config", "megatron", "Megatron parallel layers"),
)
# The same, as it shows in the keys: (pattern, code, what it is).
BARRED_KEYS = (
    (re.compile(r"\.lora_magnitude_vector"), "dora", "DoRA magnitudes"),
    (re.compile(r"\.lora_B(\.[^.]+)?\.bias$"), "lora-bias", "LoRA biases"),
    (re.compile(r"trainable_tokens"), "trainable-tokens", "trained single tokens"),
    (re.compile(r"\.base_layer\.lora_"), "target-parameters", "LoRA on bare parameters"),
    (re.compile(r"\.(modules_to_save|original_module)\."), "modules-to-save", "whole trained modules"),
    (re.compile(r"\.bias$"), "bias", "trained biases"),
)
# Initialisations that change the base before training: two such adapters belong to two different bases.
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "mica", "kasa", "loftq", "lora_ga")
# Fields that say how an adapter was trained or found, or that are read here.
KNOWN_FIELDS = frozenset(
    "alpha_pattern auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying eva_config "
    "exclude_modules fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config "
    "lora_alpha lora_dropout lora_ga_config megatron_core peft_type peft_version qalora_group_size r rank_pattern "
    "revision runtime_config target_modules task_type use_rslora".split()
)


@dataclass(frozen=True, kw_only=True)
class ScaledPair:
    """A and B of one module. weight: A is rank × in [× kernel], B out × rank [× 1 …]; embedding: rank × rows, width × rank."""

    kind: Kind
    a: Stored
    b: Stored
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def outer(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes without the rank: what every adapter of one base has in common."""
        return self.a.shape[1:], (self.b.shape[0], *self.b.shape[2:])


@dataclass(frozen=True, kw_only=True)
class AdapterInput:
    """One adapter. `copies`: weights of the base that PEFT saved along (it does so for embeddings), by module."""

    index: int  # 0 for the first
    called: str  # for sentences: Adapter 2 (owner/name)
    sha: str
    config: Json
    pairs: dict[str, ScaledPair] = field(default_factory=dict)
    copies: dict[str, Stored] = field(default_factory=dict)

    @property
    def ties(self) -> bool | None:
        """Whether its embedding's change goes to the tied head too; None where it changes no embedding."""
        tables = any(pair.kind == "embedding" for pair in self.pairs.values())
        return bool(self.config.get("ensure_weight_tying")) if tables else None


def read(source: Source, index: int) -> tuple[AdapterInput, list[Refusal]]:
    """What can be read of an adapter, and a refusal for everything else in it."""
    config = json.loads(source.texts.get("adapter_config.json", b"{}"))
    called = f"Adapter {index + 1} ({source.called})"
    adapter_inputs = AdapterInput(index=index, called=called, sha=source.sha, config=config)
    if config.get("peft_type") != "LORA":
        reason = f"{called} is no LoRA (its peft_type is {config.get('peft_type')!r}), and only LoRAs can be combined."
        return adapter_inputs, [Refusal(code="not-lora", reason=reason, remedy=KEEP_SEPARATE)]
    refusals = [_uses(called, code, what) for code, what in _barred_by(config)]
    try:
        scaling = _scaling(config)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{called} has an adapter_config.json that cannot be read as a LoRA config: {error}."
        return adapter_inputs, [Refusal(code="bad-config", reason=reason, remedy="Save the adapter again with PEFT.")]
    tensors = [tensor for header in source.headers for tensor in header.tensors]
    return adapter_inputs, refusals + _sort_out(adapter_inputs, tensors, scaling)


def bare(key: str) -> str:
    """A key without what PEFT and training wrappers put before and between its names."""
    return PREFIX.sub("", WRAPPERS.sub("", key))


def _uses(called: str, code: str, what: str) -> Refusal:
    return Refusal(code=code, reason=f"{called} uses {what}, which cannot be combined.", remedy=KEEP_SEPARATE)


def _holds(called: str, code: str, what: str, keys: list[str]) -> Refusal:
    shown = f"{len(keys)} tensors, e.g. {keys[0]}"
    reason = f"{called} holds {what} ({shown}), which cannot be combined."
    return Refusal(code=code, reason=reason, remedy=KEEP_SEPARATE)


def _barred_by(config: Json) -> list[tuple[str, str]]:
    """(code, what it is) of everything in the config that cannot be combined."""
    found = [(code, what) for name, code, what in BARRED_FIELDS if config.get(name)]
    if config.get("bias", "none") != "none":
        found.append(("bias", f"trained biases (bias={config['bias']!r})"))
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(BASE_CHANGING_INITS):
        found.append(("changed-base", f"the initialisation {start!r}, which trains against a changed base"))
    known = KNOWN_FIELDS | {name for name, _, _ in BARRED_FIELDS}
    if strange := sorted(name for name, value in config.items() if name not in known and value):
        found.append(("unknown-setting", f"settings that this version does not know ({', '.join(strange)})"))
    return found


def _sort_out(
    adapter_inputs: AdapterInput, tensors: list[Stored], scaling: Callable[[str], tuple[int, float]]
) -> list[Refusal]:
    """Fill in the pairs and copies; every tensor is in one of them or in a refusal."""
    halves: dict[tuple[str, Kind], dict[str, Stored]] = {}
    names: set[str | None] = set()
    barred: dict[tuple[str, str], list[str]] = {}
    for tensor in tensors:
        key = bare(tensor.key)
        if odd := next(((code, what) for pattern, code, what in BARRED_KEYS if pattern.search(key)), None):
            barred.setdefault(odd, []).append(tensor.key)
        elif half := HALF.fullmatch(key):
            kind: Kind = "weight" if half["side"] else "embedding"
            names.add(half["name"] or half["table_name"])
            sides = halves.setdefault((half["module"], kind), {})
            if sides.setdefault(half["side"] or half["table"], tensor) is not tensor:
                barred.setdefault(("repeated-key", "a second LoRA matrix for one module"), []).append(tensor.key)
        elif (copy := COPY.fullmatch(key)) and copy["module"] not in adapter_inputs.copies:
            adapter_inputs.copies[copy["module"]] = tensor
        else:
            barred.setdefault(("unknown-key", "tensors of an unknown kind"), []).append(tensor.key)
    refusals = [_holds(adapter_inputs.called, code, what, keys) for (code, what), keys in barred.items()]
    if len(names) > 1:
        reason = f"{adapter_inputs.called} holds several adapters in one file: {', '.join(sorted(map(str, names)))}."
        refusals.append(Refusal(code="several-adapters", reason=reason, remedy="Save them one by one."))
    for (module, kind), sides in sorted(halves.items()):
        if problem := _unfit(adapter_inputs, module, sides, scaling):
            refusals.append(problem)
        else:
            adapter_inputs.pairs[module] = ScaledPair(kind=kind, a=sides["A"], b=sides["B"], scaling=scaling(module)[1])
    return refusals


def _unfit(
    adapter_inputs: AdapterInput, module: str, sides: dict[str, Stored], scaling: Callable[[str], tuple[int, float]]
) -> Refusal | None:
    """What is wrong with a module's halves, or None."""
    again = "Save the adapter again with PEFT."
    if sides.keys() != {"A", "B"}:
        reason = f"{adapter_inputs.called} has only the {' and '.join(sides)} matrix of {module}."
        return Refusal(code="half-a-pair", reason=reason, remedy=again)
    if module in adapter_inputs.pairs:
        reason = f"{adapter_inputs.called} changes {module} both as a weight and as an embedding."
        return Refusal(code="repeated-key", reason=reason, remedy=again)
    if empty := next((one for one in sides.values() if 0 in one.shape), None):
        reason = f"{adapter_inputs.called} holds an empty tensor, {empty.key}, as DeepSpeed ZeRO-3 and FSDP leave them ungathered."
        return Refusal(code="not-gathered", reason=reason, remedy="Save it again with its parameters gathered.")
    a, b, rank = sides["A"].shape, sides["B"].shape, scaling(module)[0]
    if len(a) < 2 or len(b) != len(a) or not a[0] == b[1] == rank:
        shapes = f"A is {'×'.join(map(str, a))}, B is {'×'.join(map(str, b))}"
        reason = f"{adapter_inputs.called} does not fit its own config at {module}: {shapes}, the rank is to be {rank}."
        return Refusal(code="rank", reason=reason, remedy=again)
    if odd := {sides["A"].dtype, sides["B"].dtype} - FLOATS:
        reason = f"{adapter_inputs.called} stores {module} as {odd.pop()}."
        return Refusal(code="adapter-dtype", reason=reason, remedy="Save the adapter in float32 or bfloat16.")
    return None


def _scaling(config: Json) -> Callable[[str], tuple[int, float]]:
    """module → (rank, scaling)."""
    ranks, alphas = ({**(config.get(name) or {})} for name in ("rank_pattern", "alpha_pattern"))
    for patterns in (ranks, alphas):
        check(patterns, ENDING)
    rank, alpha, root = config.get("r", 8), config.get("lora_alpha", 8), bool(config.get("use_rslora"))
    for value in (rank, *ranks.values()):
        if type(value) is not int or value < 1:
            raise ValueError(f"a rank must be a positive whole number, not {value!r}")
    for value in (alpha, *alphas.values()):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"an alpha must be a finite number, not {value!r}")

    def of(module: str) -> tuple[int, float]:
        its_rank: int = _of(ranks, module, rank)
        its_alpha: float = _of(alphas, module, alpha)
        return its_rank, its_alpha / (math.sqrt(its_rank) if root else its_rank)

    return of


def _of(patterns: Json, module: str, otherwise: Any) -> Any:
    found = first(patterns, module, ENDING)
    return otherwise if found is None else list(patterns.values())[found.at]
