"""The PEFT methods whose layers are probed for the weight that they stand for, and what is particular about each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bot.records import Json

# The methods whose layers give W' when asked, by peft_type; for LORA, its variants that PEFT alone has.
METHODS = {
    "ADALORA": "AdaLoRA", "ADAMSS": "AdaMSS", "BEFT": "BEFT", "BOFT": "BOFT", "C3A": "C3A", "DEFT": "DEFT",
    "DELORA": "DeLoRA", "FOURIERFT": "FourierFT", "FROD": "FRoD", "GLORA": "GLoRA", "GRALORA": "GraLoRA",
    "HIRA": "HiRA", "HRA": "HRA", "IA3": "IA³", "LN_TUNING": "LN-tuning", "LOHA": "LoHa", "LOKR": "LoKr",
    "LORA": "a LoRA variant", "MISS": "MiSS", "OFT": "OFT", "OSF": "OSF", "PEANUT": "PEANuT", "PSOFT": "PSOFT",
    "PVERA": "PVeRA", "RANDLORA": "RandLoRA", "ROAD": "RoAd", "SHIRA": "SHiRA", "SUPERTUNING": "SuperTuning",
    "TINYLORA": "TinyLoRA", "UNILORA": "Uni-LoRA", "VBLORA": "VB-LoRA", "VERA": "VeRA", "WAVEFT": "WaveFT",
}  # fmt: skip
# LoRA's variants that are not B·A on the base as it is.
VARIANTS = ("kasa_config", "velora_config", "monteclora_config", "use_bdlora")
MOVES_BASE = ("pissa", "olora")
# Layers that take something from the base while they are made; PSOFT and AdaMSS from its float32 decomposition.
READS_BASE = frozenset({"ADAMSS", "FROD", "OSF", "PSOFT", "SUPERTUNING", "TINYLORA"})
IN_FLOAT32 = frozenset({"ADAMSS", "PSOFT"})
# How far, relative to its largest element, a W' found here may be off: by float64's errors, by those of a float32
# decomposition, or by float64's after FRoD has solved for a factor with an ill-conditioned matrix.
SLACK = {"ADAMSS": 2.0**-20, "PSOFT": 2.0**-20, "FROD": 2.0**-24}
# Methods that change a module's bias too, where it has one; BEFT nothing else.
MOVES_BIAS = frozenset({"ADAMSS", "BEFT", "GLORA", "IA3", "LN_TUNING", "ROAD"})
# Fields that never reach PEFT: they name code to import, or say what other checks look at.
KEPT_OUT = frozenset({
    "auto_mapping", "megatron_core", "megatron_config", "base_model_name_or_path", "revision", "runtime_config",
    "peft_type", "peft_version", "task_type", "bias", "modules_to_save", "inference_mode", "trainable_token_indices",
})  # fmt: skip


def is_probed(config: Json) -> bool:
    """Whether this adapter's tensors are found by asking PEFT's layers."""
    if config.get("peft_type") != "LORA":
        return config.get("peft_type") in METHODS
    start = config.get("init_lora_weights")
    return any(config.get(name) for name in VARIANTS) or (isinstance(start, str) and start.lower() in MOVES_BASE)


def has_own_merge(layer: Any) -> bool:
    """Whether a PEFT layer is of a method that only asking can derive: not B·A, not rows of tokens."""
    if not hasattr(layer, "base_layer") or not hasattr(layer, "adapter_layer_names"):
        return False
    if type(layer).__module__.startswith("peft.tuners.lora."):
        variants = getattr(layer, "lora_variant", {}).values()
        classes = [variant if isinstance(variant, type) else type(variant) for variant in variants]
        return any(own.__name__.startswith(("Kasa", "BdLora", "Velora", "Monteclora")) for own in classes)
    return not type(layer).__module__.startswith("peft.tuners.trainable_tokens.")


def changed_by(layer: Any) -> Iterator[str]:
    """The parameters of its module that such a layer changes, by the method's name."""
    method = type(layer).__module__.split(".")[2].upper()
    for name, _ in layer.get_base_layer().named_parameters(recurse=False):
        if (name != "bias" and method != "BEFT") or (name == "bias" and method in MOVES_BIAS):
            yield name


def reads_base(config: Json) -> bool:
    """LoRA's PiSSA and OLoRA move the base, and KaSA truncates it."""
    start = str(config.get("init_lora_weights", "")).lower()
    return config.get("peft_type") in READS_BASE or (
        config.get("peft_type") == "LORA" and (start in ("pissa", "olora") or bool(config.get("kasa_config")))
    )
