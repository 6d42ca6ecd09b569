"""Which engine merges an adapter, and which of its settings no merge can follow."""

from __future__ import annotations

from collections.abc import Mapping

from bot.adapters.lora_config import unknown_settings
from bot.adapters.methods import COMMON, METHODS, Engine, Method
from bot.records import Json, Refusal

KEEP_SEPARATE = "Keep the adapter separate, or train it without that."


def find_method(config: Json) -> tuple[Method | None, list[Refusal]]:
    """The method of a config and the refusals that its type and settings force. Total over whatever JSON holds."""
    peft_type = config.get("peft_type")
    method = METHODS.get(peft_type) if isinstance(peft_type, str) else None
    if method is None:
        named = f"The adapter's peft_type is {peft_type!r}, which peft 0.21 does not have."
        reason = named if isinstance(peft_type, str) else "adapter_config.json names no peft_type."
        remedy = "Save the adapter with PEFT, so that its config says what it is."
        return None, [Refusal(code="unknown-peft-type", reason=reason, remedy=remedy)]
    if method.engine is None:
        code = "no-merged-form"
        return method, [Refusal(code=code, reason=method.refused, remedy="Keep the adapter separate.")]
    return method, refusals_for(config)


def engine_for(config: Json) -> Engine | None:
    """Which engine merges it. For LORA: what PEFT must rebuild from the base, or has variants of its own for, is not
    the streaming engine's."""
    peft_type = config.get("peft_type")
    method = METHODS.get(peft_type) if isinstance(peft_type, str) else None
    if method is None or peft_type != "LORA":
        if peft_type == "SUPERTUNING" and config.get("save_precomputed_indices", True) is False:
            return "in-memory"  # the places are then the base's largest weights, found again on loading
        return method.engine if method else None
    if config.get("kasa_config") or _initialisation(config) in ("pissa", "olora"):
        return "in-memory"
    if any(config.get(field) for field in ("velora_config", "monteclora_config", "use_bdlora")):
        return "phantom"
    return "streaming"


# --- settings that cannot be merged -------------------------------------------------------------------------------

Setting = tuple[str, str, str]  # (config field, code, why)

LORA_REFUSED: tuple[Setting, ...] = (
    ("alora_invocation_tokens", "alora", "aLoRA acts on some tokens of a text only, so that it has no merged form"),
    ("arrow_config", "arrow", "Arrow chooses among adapters anew for every token, so that it has no merged form"),
    ("use_qalora", "qalora", "QALoRA belongs to a GPTQ-quantised base, and PEFT itself cannot merge it"),
    ("megatron_config", "megatron", "The adapter was made for Megatron's parallel layers"),
)
# Initialisations that move the base, and that nobody can repeat without what only the trainer had.
INITS_REFUSED: Mapping[str, str] = {
    "pissa_niter": "PiSSA's fast variant starts from a random projection, so that its changed base cannot be rebuilt",
    "corda": "CorDA changes the base by statistics of its training texts, which the adapter does not hold",
    "lora_ga": "LoRA-GA changes the base by gradients of its first batch, which the adapter does not hold",
    "loftq": "LoftQ trains against a base that it has quantised itself, which the adapter does not hold",
}
CONVERT = "Save it as a plain LoRA (PEFT: path_initial_model_for_weight_conversion), then merge that."
OTHER_REFUSED: Mapping[str, tuple[Setting, ...]] = {
    "PVERA": (("sample_at_inference", "samples", "PVeRA draws new weights at every call (sample_at_inference)"),),
    "ADALORA": (("megatron_config", "megatron", "The adapter was made for Megatron's parallel layers"),),
}


def refusals_for(config: Json) -> list[Refusal]:
    """What a config of a mergeable method switches on that cannot be merged; unknown settings among it.

    For LORA merged by the streaming engine only the rules about what has no merged form apply: the rest is its own.
    """
    peft_type = str(config.get("peft_type"))
    method = METHODS[peft_type]
    settings = LORA_REFUSED if peft_type == "LORA" else OTHER_REFUSED.get(peft_type, ())
    refusals = [
        Refusal(code=code, reason=f"{why}.", remedy=KEEP_SEPARATE) for field, code, why in settings if config.get(field)
    ]
    if peft_type == "LORA":
        refusals += _unrepeatable(config)
        if engine_for(config) == "streaming":
            return refusals
        refusals += _unmixable(config)
    refusals += _from_chance(peft_type, config)
    known = method.settings | COMMON | {field for field, _, _ in settings} | _idle(peft_type)
    refusals += unknown_settings(config, known)
    if peft_type == "GLORA" and config.get("bias", "none") != "none":
        reason = "The adapter trained the base's biases beside GLoRA's own, which this version cannot tell apart."
        refusals.append(Refusal(code="bias", reason=reason, remedy=KEEP_SEPARATE))
    return refusals


def _idle(peft_type: str) -> frozenset[str]:
    """Fields that AdaLoRA inherits from LoRA, or that no trained LoRA needs any more."""
    if peft_type not in ("LORA", "ADALORA"):
        return frozenset()
    return frozenset({
        "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "ensure_weight_tying",
        "use_rslora", "alpha_pattern",
    }) - ({"use_rslora", "alpha_pattern"} if peft_type == "LORA" else frozenset())  # fmt: skip


def _initialisation(config: Json) -> str:
    start = config.get("init_lora_weights", True)
    return start.lower() if isinstance(start, str) else ""


def _unrepeatable(config: Json) -> list[Refusal]:
    start = _initialisation(config)
    return [
        Refusal(code="changed-base", reason=f"{why}.", remedy=CONVERT)
        for name, why in INITS_REFUSED.items()
        if start.startswith(name)
    ]


def _unmixable(config: Json) -> list[Refusal]:
    """What the streaming engine could do, and PEFT's own layers beside a rebuilt base cannot."""
    parts = {
        "trainable_token_indices": "trained single tokens",
        "layer_replication": "replicated layers",
        "target_parameters": "LoRA on bare parameters",
    }
    return [
        Refusal(
            code="mixed-methods",
            reason=f"The adapter has {what} beside a LoRA variant that changes or needs the base.",
            remedy=KEEP_SEPARATE,
        )
        for field, what in parts.items()
        if config.get(field)
    ]


def _from_chance(peft_type: str, config: Json) -> list[Refusal]:
    """Projections that are not in the file and that another machine would not find again."""
    if peft_type == "FROD" and config.get("save_projection", True) is False:
        what = "FRoD's projection is not in the adapter, and its eigenvectors differ from one machine to the next."
    elif peft_type == "PSOFT" and config.get("psoft_svd", "full") != "full":
        what = "PSOFT's fast SVD starts from a random projection, so that its factors cannot be rebuilt exactly."
    else:
        return []
    remedy = "Save the adapter with its projection, or keep it separate."
    return [Refusal(code="not-rebuildable", reason=what, remedy=remedy)]


def notes_for(config: Json) -> tuple[str, ...]:
    """What a reader of the plan should know about a merge that PEFT's unmerged model decides on this machine."""
    match config.get("peft_type"):
        case "PSOFT":
            what = "its factors are not in the adapter; they are the base's singular vectors, whose signs"
        case "ADAMSS":
            what = "its blocks of rows are not in the adapter; they are clusters of the base's rows, which"
        case _:
            return ()
    name = METHODS[str(config["peft_type"])].name
    return (f"{name}: {what} are found again here, as PEFT would; another machine's SVD may give others.",)
