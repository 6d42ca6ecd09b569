"""What bitsandbytes is told of a weight in four bits, and the bytes that it takes then. (No torch: the whole proof's own process
reads it.)"""

from __future__ import annotations

from bot.records import Json

BLOCK = 64  # bitsandbytes' block of four-bit numbers, and of their largest values
OUTER = 256
SKIP = "llm_int8_skip_modules"
# QLoRA's settings, where none are given (Dettmers et al. 2023).
USUAL = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


def settings_of(settings: Json) -> Json:
    """BitsAndBytesConfig's fields; names of modules may stand in one string, with commas between them."""
    skip = settings.get(SKIP)
    names = [name.strip() for name in skip.split(",")] if isinstance(skip, str) else skip
    return {**USUAL, **settings, SKIP: names}


def held(numbers: int, settings: Json) -> int:
    """The bytes that bitsandbytes would take for so many numbers: half a byte each, and one absmax for each block."""
    blocks = -(-numbers // int(settings.get("blocksize", BLOCK)))
    scales = blocks + 4 * -(-blocks // OUTER) if settings["bnb_4bit_use_double_quant"] else 4 * blocks
    return -(-numbers // 2) + scales
