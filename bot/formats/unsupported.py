"""Quantised bases that nobody here reads, and the 16-bit models that quantised bases were made from."""

from __future__ import annotations

import re
from typing import Any

from bot.formats.base import quantization_of
from bot.records import Json, Refusal

# quant_method → what people call it
NAMES = {
    "gptq": "GPTQ", "awq": "AWQ", "hqq": "HQQ", "exl2": "EXL2", "exl3": "EXL3", "gguf": "GGUF", "aqlm": "AQLM", "vptq": "VPTQ",
    "quanto": "quanto", "eetq": "EETQ", "spqr": "SpQR", "bitnet": "BitNet", "higgs": "HIGGS", "fp_quant": "FP-Quant",
    "auto-round": "AutoRound", "intel/auto-round": "AutoRound", "quark": "Quark", "nvfp4": "NVFP4", "fouroversix": "four-over-six",
    "sinq": "SINQ", "metal": "Metal", "gemma": "Gemma's own", "marlin": "Marlin", "modelopt_fp4": "ModelOpt FP4",
    "torchao": "torchao", "compressed-tensors": "compressed-tensors", "mxfp4": "MXFP4", "bitsandbytes": "bitsandbytes",
}  # fmt: skip

# What quantisers write behind a model's name; the longest first. Case does not matter.
SUFFIXES = re.compile(
    r"[-_.](?:unsloth-bnb-4bit|(?:bnb|nf4|int4|int8|fp4)-(?:4|8)bit|bnb-(?:4|8)bits?|"
    r"fp8(?:-(?:dynamic|block|static|tensor|kv))*|nvfp4(?:a16)?|mxfp4|"
    r"quantized\.w\d+a\d+|w\d+a(?:16|8|fp8)(?:-(?:g\d+|sym|asym))*|"
    r"(?:gptq|awq|autoround|auto-round|hqq|aqlm|exl2|exl3|eetq|vptq|spqr)"
    r"(?:[-_](?:int[348]|[2348]bits?|w\d+a\d+|g\d+|\d+g|sym|asym|gs\d+|4\.0bpw|inc|marlin|gemm))*|"
    r"(?:\d+(?:\.\d+)?bpw)(?:-h\d)?(?:-exl[23])?|(?:i\d+-)?gguf|int[48](?:-weight-only)?|[48]bits?)$",
    re.IGNORECASE,
)
REPO = re.compile(r"[\w.-]+/[\w.-]+")
# Accounts that publish other people's models quantised only: a name of theirs without its suffix leads nowhere.
QUANTISERS = frozenset(
    "thebloke casperhansen hugging-quants bartowski mradermacher lmstudio-community maziyarpanahi turboderp lonestriker "
    "kaitchup modelcloud solidrust techxgenus redhatai neuralmagic nm-testing ista-daslab quanttrio cyankiwi cpatonn amd "
    "hqq-community mobiuslabsgmbh second-state quantfactory ggml-org intel opea medmekk".split()
)


def parent_of(config: Json, card: Json, repo: str | None = None) -> str | None:
    """The repo of the 16-bit model that a quantised one was made from; None where nothing says.

    `card`: README.md's metadata, whose `base_model` names it (a string, or a list of one); then what config.json says it was
    loaded from; then `repo`, the quantised one's own name: `-bnb-4bit` and its kin are taken off where the owner has both
    (unsloth, Qwen). Whether that repo exists, whoever asks will see.
    """
    named = _from_card(card, repo)
    if named is not None:
        return named
    plain_own = _without_suffix(repo.partition("/")[2]) if repo else None
    for candidate in (config.get("_name_or_path"), repo):
        if not isinstance(candidate, str) or not REPO.fullmatch(candidate):
            continue
        owner, _, name = candidate.partition("/")
        plain = _without_suffix(name)
        if plain != name and owner.lower() not in QUANTISERS:
            return f"{owner}/{plain}"
        # A config may name what a finetune began from, which has other weights: only a namesake is believed.
        if plain == name and candidate != repo and name == plain_own:
            return candidate
    return None


def refusal_of(config: Json, card: Json, repo: str | None = None) -> Refusal:
    """The base's form is read by nobody here: refused by its name, and with that of its 16-bit parent."""
    quantization = quantization_of(config) or {}
    method = str(quantization.get("quant_method") or _unnamed(quantization))
    name = NAMES.get(method.lower(), method)
    if method == "modelopt":
        name = f"ModelOpt {quantization.get('quant_algo') or 'without a quant_algo'}"
    parent = parent_of(config, card, repo)
    remedy = (
        f"Merge into {parent}, which it was made from: --base-weights original, or --base {parent}."
        if parent
        else "Name the 16-bit model that it was made from with --base."
    )
    reason = f"The base's weights are stored as {name}, which is not read: it could not be merged into exactly."
    return Refusal(code="quantised-base", reason=reason, remedy=remedy)


def _from_card(card: Json, repo: str | None) -> str | None:
    named: Any = card.get("base_model")
    if isinstance(named, list):
        named = named[0] if len(named) == 1 else None
    if not isinstance(named, str) or not REPO.fullmatch(named) or named == repo:
        return None
    # A finetune's card names what it was tuned from, which has other weights; most cards do not say which relation.
    relation = card.get("base_model_relation")
    return named if relation in (None, "quantized") else None


def _without_suffix(name: str) -> str:
    """A model's name without what quantisers write behind it; several times, for `-AWQ-4bit` and such."""
    while (shorter := SUFFIXES.sub("", name)) != name and shorter:
        name = shorter
    return name


def _unnamed(quantization: Json) -> str:
    """Old bitsandbytes configs and others name no method."""
    if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
        return "bitsandbytes"
    return "a form without a name"
