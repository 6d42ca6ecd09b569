"""compressed-tensors' integers of 1 to 8 bits, packed or one to a byte, and its floats of eight bits: (code − zero point) · scale in
float32, in numpy.

The file format is the package's: `compressors/pack_quantized/` and `compressors/naive_quantized/`, and `_dequantize` in its
`quantization/lifecycle/forward_helpers.py`, with scales widened to float32 first. Tests hold what is read to that, bit for bit.
(With scales of 16 bits the package multiplies in 16 bits; the dequantised number is the product itself.) Columns in another order
(`weight_g_idx`) are read as the package did before it gave up their `actorder`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import numpy as np

from bot.checks.reading.checkpoint import PackedWeight, TensorRef
from bot.checks.reading.component_numbers import component, wide_component
from bot.checks.reading.compressed_schemes import Packing
from bot.checks.reading.stored_numbers import Array

PACKED = "pack-quantized"
PLAIN = ("naive-quantized", "int-quantized", "float-quantized")  # three names for one number to a byte
WORD = 32  # bits
STRIP = 1 << 20  # numbers that are unpacked together, where they lie across bytes
SCALES = ("F32", "BF16", "F16")
ZEROS = ("I8", "U8", "I16", "I32", "I64", "F8_E4M3", *SCALES)


def shape_of(components: Mapping[str, TensorRef], packing: Packing | None) -> tuple[int, ...]:
    """The weight's own shape. Raises ValueError where neither `weight_shape` nor integers in groups say how wide a packed one is."""
    if "weight_shape" in components:
        return tuple(int(extent) for extent in component(components["weight_shape"]))
    if "weight" in components:
        return components["weight"].stored.shape
    main, scale = components["weight_packed"].stored, components["weight_scale"].stored
    if packing is None or (packing.format, packing.strategy) != (PACKED, "group"):
        raise ValueError(f"{main.key} has no weight_shape.")
    return main.shape[0], scale.shape[-1] * packing.group_size


def is_read(components: Mapping[str, TensorRef], shape: tuple[int, ...], packing: Packing) -> bool:
    """Whether the parts of a weight are of the dtypes and shapes that `numbers_of` reads."""
    if len(shape) != 2 or min(shape) < 1:
        return False
    scale_shape = _scale_shape(shape, packing)
    scale = components["weight_scale"].stored
    fits = scale.shape == scale_shape if packing.strategy != "tensor" else math.prod(scale.shape) == 1
    return (
        _main_fits(components, shape, packing)
        and scale.dtype in SCALES
        and fits
        and _zero_fits(components, shape, packing)
        and _order_fits(components, shape, packing)
    )


def numbers_of(packed: PackedWeight) -> Array:
    """Rows × columns in float32, of a weight of which `is_read` says so."""
    packing: Packing = packed.settings["packing"]
    scale_shape = _scale_shape(packed.shape, packing)
    if packing.format == PACKED:
        words = component(packed.components["weight_packed"])
        numbers = np.ascontiguousarray(unpacked(words, packing.bits, packed.shape[1]))
    else:
        numbers = wide_component(packed.components["weight"])
    scale = wide_component(packed.components["weight_scale"]).reshape(scale_shape)
    zero = _zero(packed, packing, scale_shape)
    if packing.reordered:
        return _by_column(numbers, scale, zero, component(packed.components["weight_g_idx"]))
    return _by_block(numbers, scale, zero, packing.block)


def unpacked(words: Array, bits: int, count: int) -> Array:
    """`count` integers of every row of int32 words, in float32.

    They follow each other without a gap, the first in a row's lowest bits, and are stored 2^(bits − 1) larger.
    """
    octets = np.ascontiguousarray(words).view(np.uint8)
    if 8 % bits == 0:
        return _numbers_of_bytes(bits)[octets].view(np.float32)[:, :count]
    # Eight of them lie in as many bytes as one has bits.
    wide = -(-octets.shape[1] // bits)
    numbers = np.empty((len(octets), wide * 8), dtype=np.float32)
    shifts = np.arange(8, dtype=np.uint64) * np.uint64(bits)
    step = max(1, STRIP // numbers.shape[1])
    for low in range(0, len(octets), step):
        strip = octets[low : low + step]
        eights = np.zeros((len(strip), wide * bits), dtype=np.uint8)
        eights[:, : strip.shape[1]] = strip
        held = np.zeros((len(strip), wide, 8), dtype=np.uint8)
        held[..., :bits] = eights.reshape(len(strip), wide, bits)
        codes = (held.view("<u8") >> shifts) & np.uint64((1 << bits) - 1)
        numbers[low : low + step] = codes.reshape(len(strip), -1)
    numbers -= 1 << (bits - 1)
    return numbers[:, :count]


@cache
def _numbers_of_bytes(bits: int) -> Array:
    """What the integers in every byte are, where none lies across two: an item for each byte, of 8 ÷ bits float32 numbers."""
    codes = np.arange(256)[:, None] >> np.arange(0, 8, bits) & ((1 << bits) - 1)
    table: Array = (codes - (1 << (bits - 1))).astype(np.float32)
    return table.view(f"V{table.strides[0]}").reshape(256)  # looked up in a third of the time that rows take


def _scale_shape(shape: tuple[int, ...], packing: Packing) -> tuple[int, int]:
    """How many scales there are, downwards and across; (0, 0) where they do not divide the matrix."""
    rows, columns = shape
    match packing.strategy:
        case "tensor":
            return 1, 1
        case "channel":
            return rows, 1
        case "group":
            return (rows, columns // packing.group_size) if columns % packing.group_size == 0 else (0, 0)
    assert packing.block is not None
    return math.ceil(rows / packing.block[0]), math.ceil(columns / packing.block[1])


def _main_fits(components: Mapping[str, TensorRef], shape: tuple[int, ...], packing: Packing) -> bool:
    if packing.format == PACKED:
        main = components.get("weight_packed")
        wide = math.ceil(shape[1] * packing.bits / WORD)
        fits = main is not None and main.stored.dtype == "I32" and main.stored.shape == (shape[0], wide)
        return fits and packing.kind == "int" and packing.bits <= 8
    main = components.get("weight")
    if packing.format not in PLAIN or main is None or main.stored.shape != shape:
        return False
    if packing.kind == "int":
        return main.stored.dtype == "I8" and packing.bits <= 8
    return main.stored.dtype == "F8_E4M3" and packing.bits == 8


def _has_packed_zeros(packing: Packing) -> bool:
    return packing.format == PACKED and not packing.symmetric and packing.strategy in ("group", "channel")


def _zero_fits(components: Mapping[str, TensorRef], shape: tuple[int, ...], packing: Packing) -> bool:
    zero = components.get("weight_zero_point")
    if _has_packed_zeros(packing):
        words = math.ceil(shape[0] * packing.bits / WORD), _scale_shape(shape, packing)[1]
        return zero is not None and zero.stored.dtype == "I32" and zero.stored.shape == words
    if zero is None:
        return True
    like_scale = zero.stored.shape in (components["weight_scale"].stored.shape, ())
    return zero.stored.dtype in ZEROS and (like_scale or zero.stored.shape == (1,))


def _order_fits(components: Mapping[str, TensorRef], shape: tuple[int, ...], packing: Packing) -> bool:
    order = components.get("weight_g_idx")
    if order is None or not packing.reordered:
        return order is None and not packing.reordered
    if packing.strategy != "group" or order.stored.dtype not in ("I32", "I64") or order.stored.shape != shape[1:]:
        return False
    return np.array_equal(np.unique(component(order)), np.arange(_scale_shape(shape, packing)[1]))


def _zero(packed: PackedWeight, packing: Packing, scale_shape: tuple[int, int]) -> Array | None:
    """Zero points by scale; None where there are none."""
    ref = packed.components.get("weight_zero_point")
    if ref is None:
        return None
    if _has_packed_zeros(packing):  # column by column
        return unpacked(component(ref).T, packing.bits, scale_shape[0]).T
    return np.broadcast_to(wide_component(ref).reshape(-1 if ref.elements == 1 else scale_shape), scale_shape)


def _by_column(numbers: Array, scale: Array, zero: Array | None, order: Array) -> Array:
    """In place; `order`: of which group a column is."""
    if zero is not None:
        numbers -= zero[:, order]
    numbers *= scale[:, order]
    return numbers


def _by_block(numbers: Array, scale: Array, zero: Array | None, block: tuple[int, int] | None) -> Array:
    """In place. Blocks may end outside the matrix; what else has a scale of its own divides it."""
    high, wide = block or (len(numbers) // scale.shape[0], numbers.shape[1] // scale.shape[1])
    if block is None:
        view = numbers.reshape(scale.shape[0], high, scale.shape[1], wide)
        if zero is not None:
            view -= zero[:, None, :, None]
        view *= scale[:, None, :, None]
        return numbers
    for at, low in enumerate(range(0, len(numbers), high)):
        rows = numbers[low : low + high]
        if zero is not None:
            rows -= zero[at].repeat(wide)[: rows.shape[1]]
        rows *= scale[at].repeat(wide)[: rows.shape[1]]
    return numbers
