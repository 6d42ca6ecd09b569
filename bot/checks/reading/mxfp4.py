"""gpt-oss's experts in MXFP4: experts × in × out, one expert at a time, in float32 and in numpy. Tests hold that to transformers' own
conversion, bit for bit.

They are written back (`--quantize same`) by the rule of compressed-tensors and of vLLM's reference; `slab_written_again` has it once
more, in float64 and by searching, for those without that package; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bot.checks.reading.checkpoint import PackedWeight, TensorRef
from bot.checks.reading.component_numbers import E2M1, component, powers
from bot.checks.reading.packed import extras as extras
from bot.checks.reading.packed import modules as modules
from bot.checks.reading.packed import read_component
from bot.checks.reading.stored_numbers import Array
from bot.records import Json

if TYPE_CHECKING:
    from torch import Tensor

NAME = "MXFP4"
PACKAGE = "numpy"
GROUP = 32
STRIP = 1 << 20  # numbers of an expert that are looked at together
LEVELS = E2M1[:8].astype(np.float64)
MIDDLES = (LEVELS[:-1] + LEVELS[1:]) / 2
SCALES = np.ldexp(1.0, np.arange(254) - 127)


def recognises(quantization: Json) -> bool:
    """Whether this `quantization_config` says MXFP4."""
    return quantization.get("quant_method") == "mxfp4"


def unpack(tensors: Mapping[str, TensorRef], quantization: Json, config: Json, dtype: str) -> dict[str, PackedWeight]:
    """`…_blocks` (experts × out × groups × 16 bytes) with `…_scales`."""
    packed = {}
    for key, ref in tensors.items():
        if not key.endswith("_blocks"):
            continue
        name = key.removesuffix("_blocks")
        experts, out, groups, size = ref.stored.shape
        components = {"blocks": ref, "scales": tensors[f"{name}_scales"]}
        if {ref.stored.dtype for ref in components.values()} != {"U8"}:
            raise ValueError(f"{name} is not stored as bytes")
        shape = (experts, groups * size * 2, out)
        packed[name] = PackedWeight(dense=dense, components=components, shape=shape, dtype=dtype, slabs=experts)
    return packed


def dense(packed: PackedWeight, slab: int) -> Array:
    """One expert: two numbers to a byte, the lower half first, by the scale of their group of 32 inputs."""
    blocks, scales = (component(packed.components[role], slab) for role in ("blocks", "scales"))
    numbers = np.stack([E2M1[blocks & 15], E2M1[blocks >> 4]], axis=-1).reshape(*scales.shape, -1)
    with np.errstate(over="ignore"):
        # By way of 2¹²⁷: the last scale, 2¹²⁸, is none of float32's numbers, and half of it times 0 is 0.
        numbers *= powers(np.minimum(scales, 254))[..., None]
        numbers[scales == 255] *= 2
    expert: Array = np.ascontiguousarray(numbers.reshape(len(scales), -1).T)
    return expert


def name_of(packed: PackedWeight) -> str:
    """Only the base's own form is written."""
    return "same"


def quantise(exact: Tensor, packed: PackedWeight) -> dict[str, Tensor]:
    """No merge writes this form anew."""
    raise ValueError("it is stored as MXFP4, which is written over the base's own only")


def slab_written_again(exact: Tensor, own: PackedWeight, slab: int) -> dict[str, Tensor]:
    """What an expert of the merge, in × out in float32, is over the base's own: blocks and scales of one expert.

    A group of 32 inputs keeps its bytes where the merge leaves it alone, or would store the same numbers. In another one the largest
    number, rounded to two significant bits, is 4 scales, or 6; all are rounded to the nearest number of four bits, ties to even.
    """
    blocks, scales = (read_component(own.components[role], slab) for role in ("blocks", "scales"))
    before = own.slab(slab).reshape(exact.shape)
    step = max(1, STRIP // len(exact))
    for low in range(0, exact.shape[1], step):
        outputs = slice(low, low + step)
        _write_over(blocks[outputs], scales[outputs], exact[:, outputs].t(), before[:, outputs].t())
    return {"blocks": blocks, "scales": scales}


def _write_over(blocks: Tensor, scales: Tensor, exact: Tensor, stored: Tensor) -> None:
    """The same for some outputs, in their place. `exact`, `stored`: out × in, as the merge and the base have them."""
    import torch

    levels, middles, powers_of_two = (torch.from_numpy(table) for table in (LEVELS, MIDDLES, SCALES))
    shape = (*scales.shape, GROUP)
    groups, before = exact.reshape(shape), stored.reshape(shape)
    touched = (groups != before).any(-1)
    if not torch.isfinite(groups[touched]).all():
        raise ValueError("it holds a NaN or Inf, which MXFP4 cannot hold")
    numbers = groups[touched].double()
    # A scale byte is right up to where the next one begins: at 7 of its scales.
    byte = torch.searchsorted(7 * powers_of_two, numbers.abs().amax(-1), right=True)
    size = numbers.abs() / powers_of_two[byte, None]
    down, up = torch.searchsorted(middles, size), torch.searchsorted(middles, size, right=True)
    near = torch.where(down % 2 == 0, down, up)
    changed = (levels[near] * powers_of_two[byte, None] * numbers.sign() != before[touched]).any(-1)
    codes = (near + 8 * (numbers < 0))[changed]
    touched[touched.clone()] = changed
    blocks[touched] = (codes[:, 0::2] + 16 * codes[:, 1::2]).to(torch.uint8)
    scales[touched] = byte[changed].to(torch.uint8)
