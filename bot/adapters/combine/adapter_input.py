"""One of the adapters that are to be combined, and what in it cannot be combined.

Config and keys are read as a plan reads them (`bot.adapters.lora_config`, `bot.adapters.lora_keys`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Literal

from bot.adapters.lora_config import LORA_FIELDS, SAVE_AGAIN, LoraScaling, read_scaling, scaling_of
from bot.adapters.lora_keys import bare_key, read_key
from bot.records import Json, Refusal, Source, Stored

Kind = Literal["weight", "embedding"]
FLOATS = frozenset({"BF16", "F16", "F32", "F64"})
KEEP_SEPARATE = "Leave that adapter out, or merge the adapters one after the other."

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
    config: Json
    pairs: dict[str, ScaledPair] = field(default_factory=dict)
    copies: dict[str, Stored] = field(default_factory=dict)

    @property
    def ties(self) -> bool | None:
        """Whether its embedding's change goes to the tied head too; None where it changes no embedding."""
        tables = any(pair.kind == "embedding" for pair in self.pairs.values())
        return bool(self.config.get("ensure_weight_tying")) if tables else None


def read_adapter_input(source: Source, index: int) -> tuple[AdapterInput, list[Refusal]]:
    """What can be read of an adapter, and a refusal for everything else in it."""
    config = json.loads(source.texts.get("adapter_config.json", b"{}"))
    called = f"Adapter {index + 1} ({source.called})"
    adapter_input = AdapterInput(index=index, called=called, config=config)
    if config.get("peft_type") != "LORA":
        reason = f"{called} is no LoRA (its peft_type is {config.get('peft_type')!r}), and only LoRAs can be combined."
        return adapter_input, [Refusal(code="not-lora", reason=reason, remedy=KEEP_SEPARATE)]
    refusals = [_uses(called, code, what) for code, what in _barred_by(config)]
    try:
        scaling = read_scaling(config)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{called} has an adapter_config.json that cannot be read as a LoRA config: {error}."
        return adapter_input, [Refusal(code="bad-config", reason=reason, remedy=SAVE_AGAIN)]
    tensors = [tensor for header in source.headers for tensor in header.tensors]
    return adapter_input, refusals + _sort_tensors(adapter_input, tensors, scaling)


def _uses(called: str, code: str, what: str) -> Refusal:
    return Refusal(code=code, reason=f"{called} uses {what}, which cannot be combined.", remedy=KEEP_SEPARATE)


def _holds(called: str, code: str, what: str, keys: list[str]) -> Refusal:
    shown = f"{len(keys)} tensors, e.g. {keys[0]}"
    reason = f"{called} holds {what} ({shown}), which cannot be combined."
    return Refusal(code=code, reason=reason, remedy=KEEP_SEPARATE)


def _barred_by(config: Json) -> list[tuple[str, str]]:
    """(code, what it is) of everything in the config that cannot be combined."""
    barred = [(code, what) for name, code, what in BARRED_FIELDS if config.get(name)]
    if config.get("bias", "none") != "none":
        barred.append(("bias", f"trained biases (bias={config['bias']!r})"))
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(BASE_CHANGING_INITS):
        barred.append(("changed-base", f"the initialisation {start!r}, which trains against a changed base"))
    if strange := sorted(name for name, value in config.items() if name not in LORA_FIELDS and value):
        barred.append(("unknown-setting", f"settings that this version does not know ({', '.join(strange)})"))
    return barred


def _sort_tensors(adapter_input: AdapterInput, tensors: list[Stored], scaling: LoraScaling) -> list[Refusal]:
    """Fill in the pairs and copies; every tensor is in one of them or in a refusal."""
    halves: dict[tuple[str, Kind], dict[str, Stored]] = {}
    names: set[str | None] = set()
    barred: dict[tuple[str, str], list[str]] = {}
    for tensor in tensors:
        key = bare_key(tensor.key)
        kind, match = read_key(key)
        if odd := next(((code, what) for pattern, code, what in BARRED_KEYS if pattern.search(key)), None):
            barred.setdefault(odd, []).append(tensor.key)
        elif match and kind in ("lora", "embedding"):
            names.add(match["name"])
            sides = halves.setdefault((match["module"], "weight" if kind == "lora" else "embedding"), {})
            if sides.setdefault(match["side"], tensor) is not tensor:
                barred.setdefault(("repeated-key", "a second LoRA matrix for one module"), []).append(tensor.key)
        elif match and _is_copy(match) and match["module"] not in adapter_input.copies:
            adapter_input.copies[match["module"]] = tensor
        else:
            barred.setdefault(("unknown-key", "tensors of an unknown kind"), []).append(tensor.key)
    refusals = [_holds(adapter_input.called, code, what, keys) for (code, what), keys in barred.items()]
    if len(names) > 1:
        listed = ", ".join(sorted(map(str, names)))
        reason = f"{adapter_input.called} holds several adapters in one file: {listed}."
        refusals.append(Refusal(code="several-adapters", reason=reason, remedy="Save them one by one."))
    for (module, kind), sides in sorted(halves.items()):
        if problem := _unfit(adapter_input, module, sides, scaling):
            refusals.append(problem)
        else:
            _, _, factor = scaling_of(scaling, module)
            adapter_input.pairs[module] = ScaledPair(kind=kind, a=sides["A"], b=sides["B"], scaling=factor)
    return refusals


def _is_copy(match: re.Match[str]) -> bool:
    """Whether a key that is none of a LoRA's own is a weight of the base."""
    return match["rest"] == "weight" and ".lora_" not in match["module"]


def _unfit(adapter_input: AdapterInput, module: str, sides: dict[str, Stored], scaling: LoraScaling) -> Refusal | None:
    """What is wrong with the two matrices of a module, or None."""
    called = adapter_input.called
    if sides.keys() != {"A", "B"}:
        reason = f"{called} has only the {' and '.join(sides)} matrix of {module}."
        return Refusal(code="half-a-pair", reason=reason, remedy=SAVE_AGAIN)
    if module in adapter_input.pairs:
        reason = f"{called} changes {module} both as a weight and as an embedding."
        return Refusal(code="repeated-key", reason=reason, remedy=SAVE_AGAIN)
    if empty := next((tensor for tensor in sides.values() if 0 in tensor.shape), None):
        reason = f"{called} holds an empty tensor, {empty.key}, as DeepSpeed ZeRO-3 and FSDP leave them ungathered."
        return Refusal(code="not-gathered", reason=reason, remedy="Save it again with its parameters gathered.")
    a, b, (rank, _, _) = sides["A"].shape, sides["B"].shape, scaling_of(scaling, module)
    if len(a) < 2 or len(b) != len(a) or not a[0] == b[1] == rank:
        shapes = f"A is {'×'.join(map(str, a))}, B is {'×'.join(map(str, b))}"
        reason = f"{called} does not fit its own config at {module}: {shapes}, the rank is to be {rank}."
        return Refusal(code="rank", reason=reason, remedy=SAVE_AGAIN)
    if odd := {sides["A"].dtype, sides["B"].dtype} - FLOATS:
        reason = f"{called} stores {module} as {odd.pop()}."
        return Refusal(code="adapter-dtype", reason=reason, remedy="Save the adapter in float32 or bfloat16.")
    return None
