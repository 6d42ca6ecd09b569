"""Other names for what an option or an input takes: those that mean the same are taken, the others are answered with what does."""

from __future__ import annotations

from difflib import get_close_matches

SYNONYMS: dict[str, dict[str, str]] = {
    "dtype": {
        "bf16": "bfloat16",
        "fp16": "float16",
        "f16": "float16",
        "half": "float16",
        "fp32": "float32",
        "f32": "float32",
        "float": "float32",
        "full": "float32",
    },
    "publish": {"pull-request": "pr"},
    "device": {"gpu": "cuda"},
}
_FOUR = "Four bits are nf4 (as QLoRA has them) or fp4."
_EIGHT = "Eight bits are int8 (bitsandbytes) or fp8 (blocks, as DeepSeek has them)."
_FOREIGN = "That form is made by its own tool, from the merge as it is (none)."
HINTS: dict[str, dict[str, str]] = {
    "quantize": {
        **dict.fromkeys(("4bit", "4-bit", "4", "int4", "q4", "load_in_4bit", "qlora"), _FOUR),
        **dict.fromkeys(("8bit", "8-bit", "8", "q8", "load_in_8bit", "w8a8"), _EIGHT),
        **dict.fromkeys(("bnb", "bitsandbytes"), "Those of bitsandbytes are nf4, fp4 and int8."),
        **dict.fromkeys(("gptq", "awq", "gguf", "q4_k_m", "q8_0", "exl2", "mlx", "mxfp4", "hqq"), _FOREIGN),
    },
    "dtype": {
        **dict.fromkeys(("int8", "int4", "nf4", "fp4", "fp8", "4bit", "8bit"), "Quantised forms are --quantize's."),
        **dict.fromkeys(("float64", "fp64", "double"), "No model is stored so; float32 is the widest."),
    },
    "base-weights": {
        **dict.fromkeys(("nf4", "4bit", "qlora", "simulate", "quantized"), "For an adapter of QLoRA: simulate-nf4."),
        **dict.fromkeys(("dequantized", "dequantize"), "stored dequantises what the base's files hold."),
    },
    "verify": {
        **dict.fromkeys(
            ("none", "no", "off", "false", "skip"), "What is published is proven; files is the quickest way."
        ),
        **dict.fromkeys(("tensors", "exact"), "weights derives every element again."),
        **dict.fromkeys(("all", "behaviour", "behavior"), "full runs the models too."),
    },
    "publish": {**dict.fromkeys(("main", "commit", "direct"), "A commit on main is push.")},
    "combine": {
        **dict.fromkeys(("sum", "add", "weighted", "average"), "The weighted sum is cat; --weights gives the weights."),
        **dict.fromkeys(("dare",), "DARE is dare_linear or dare_ties."),
    },
}


def resolve_choice(option: str, value: str, choices: tuple[str, ...]) -> str | None:
    """The choice that a value stands for, however it is spelled; None where it stands for none."""
    plain = value.strip().lower().removeprefix("torch.")
    wanted = SYNONYMS.get(option, {}).get(plain, plain).replace("-", "_")
    return next((choice for choice in choices if choice.replace("-", "_") == wanted), None)


def describe_choices(option: str, value: str, choices: tuple[str, ...]) -> str:
    """What an option takes, and what comes near to a value that it does not."""
    plain = value.strip().lower()
    hint = HINTS.get(option, {}).get(plain)
    near = get_close_matches(plain, choices, 1)
    if hint is None and near:
        hint = f"Did you mean {near[0]}?"
    return f"It takes {', '.join(choices)}." + (f" {hint}" if hint else "")
