"""MXFP4 experts as gpt-oss stores them: `…_blocks` (experts × out × groups × 16 bytes) and `…_scales` (experts × out × groups).

A byte holds two e2m1 numbers, the low half first; a group of 32 along the inputs shares the exponent byte − 127. The logical
tensor is experts × in × out, as transformers lays it out (integrations/mxfp4.py: _convert_moe_packed_tensors). Every value is
a bfloat16 number, so that nothing is rounded; the last two scale bytes reach infinity, as there.
"""

from __future__ import annotations

from collections.abc import Mapping

from bot.formats.base import ReadRange, Rows, Unpacked, quantization_of
from bot.formats.base import small_keys as small_keys
from bot.formats.logical_tensor import logical, refused, unpacked
from bot.records import Json, Refusal, Stored

NAME = "mxfp4"
GROUP = 32


def recognises(config: Json) -> bool:
    """Whether config.json says so."""
    return (quantization_of(config) or {}).get("quant_method") == "mxfp4"


def unpack(stored: Mapping[str, Stored], config: Json, small: Mapping[str, bytes]) -> Unpacked:
    """The model's own tensors: blocks and scales as one weight."""
    made: list[Stored | Refusal] = []
    for key, blocks in stored.items():
        if not key.endswith("_blocks"):
            continue
        name = key.removesuffix("_blocks")
        scales = stored.get(f"{name}_scales")
        if scales is None or not _fits(blocks, scales):
            reason = (
                f"{key} is not laid out as gpt-oss's experts are: experts × out × groups × 16 bytes, and a scale each."
            )
            made.append(refused(reason, *([key] if scales is None else [key, scales.key])))
            continue
        experts, out, groups, _ = blocks.shape
        shape = (experts, groups * GROUP, out)
        made.append(logical(name, shape, NAME, [("blocks", blocks), ("scales", scales)], {}))
    return unpacked(stored, made)


def opener(tensor: Stored, read: ReadRange) -> Rows:
    """A logical tensor, ready to be read."""
    from bot.formats.mxfp4.rows import TransposedRows

    assert tensor.packed is not None
    parts = dict(tensor.packed.parts)
    return TransposedRows(parts["blocks"], parts["scales"], read)


def _fits(blocks: Stored, scales: Stored) -> bool:
    right = blocks.dtype == scales.dtype == "U8" and len(blocks.shape) == 4
    return right and blocks.shape[:3] == scales.shape and blocks.shape[3] == GROUP // 2
