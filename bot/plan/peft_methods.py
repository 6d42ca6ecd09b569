"""Methods that PEFT's own layers merge: which base tensors they change, found by the adapter's keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bot.adapters import method_modules
from bot.adapters.lora import read_changes
from bot.adapters.lora_config import LoraSettings, names_listed
from bot.checkpoint.locations import Ambiguous, Names
from bot.plan.claim_changes import claim
from bot.plan.claims import KeyClaims, is_empty
from bot.plan.layer_replication import LayerReplicas
from bot.plan.patches import WEIGHTS
from bot.plan.targets import Targets
from bot.plan.tying import resolve_tying
from bot.records import Json, Refusal, Stored


@dataclass(kw_only=True)
class Layers:
    """`layers`: base key → (module, parameter) that PEFT makes it from; `claims`: whole tensors that come along."""

    claims: KeyClaims
    layers: dict[str, tuple[str, str]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    untied: tuple[str, str] | None = None  # (embedding's key, head's key), where the head is written apart
    refusals: list[Refusal] = field(default_factory=list)


def claim_layers(adapter_config: Json, tensors: Sequence[Stored], names: Names, stored: Mapping[str, Stored]) -> Layers:
    """Claim every adapter tensor: by a module that PEFT merges, as shared, or as a whole tensor."""
    changed = method_modules.modules_of(adapter_config, [tensor.key for tensor in tensors], names.modules())
    saved = names_listed(adapter_config.get("modules_to_save"))
    settings = LoraSettings(bias=str(adapter_config.get("bias", "none")), saved=saved)
    whole = [tensor for tensor in tensors if tensor.key in changed.whole]
    changes = read_changes(whole, settings)
    claims = claim(changes, Targets(settings, names, stored, LayerReplicas()))
    layers = Layers(claims=claims, refusals=[*changed.refusals, *changes.refusals])
    for tensor in filter(is_empty, tensors):
        claims.refuse("not-gathered", tensor.key, tensor)
    # Weights first: a bias that the base does not have must not lead the search for their prefix astray.
    modules = changed.modules.items()
    asked = [f"{m}.{p}" for m, own in modules for p in own if p == "weight" or len(own) == 1]
    try:
        placements = dict(names.find(asked).placements)
        for module, parameters in modules:
            if "bias" in parameters and (beside := names.beside(placements.get(f"{module}.weight"), "bias")):
                placements[f"{module}.bias"] = beside
    except Ambiguous as ambiguity:
        claims.refuse("ambiguous-names", f"{ambiguity.args[0]} and {ambiguity.args[1]}", *tensors)
        return layers
    by_key = {tensor.key: tensor for tensor in tensors}
    for module, parameters in modules:
        own = [by_key[key] for key in changed.keys.get(module, ())]
        for parameter in parameters:
            placement = placements.get(f"{module}.{parameter}")
            if placement is None:
                if parameter == "weight" or (module, parameter) in changed.required:
                    claims.refuse("not-in-base", f"{module}.{parameter}", *own)
            elif (key := placement.key) is None:
                claims.refuse("in-pieces", f"{module}.{parameter}", *own)
            elif stored[key].dtype not in WEIGHTS:
                claims.refuse("weight-dtype", f"{key} is stored as {stored[key].dtype}", *own)
            else:
                layers.layers[key] = (module, parameter)
        layers.used |= {tensor.key for tensor in own}
    layers.used |= set(changed.shared)
    for key in sorted(layers.layers.keys() & {key for key, value in claims.values.items() if value.trained}):
        claims.refuse("claimed-twice", key)
    if resolve_tying(claims, settings, names, stored, layers.layers.keys()) and names.embedding and names.head:
        layers.untied = names.embedding, names.head
    return layers
