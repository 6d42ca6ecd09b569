"""gpt-oss's experts in MXFP4, by transformers' own conversion in float32: experts × in × out, one expert at a time.

They are written back (`--quantize same`) by the rule of compressed-tensors and of vLLM's reference; `slab_written_again` has it once
more, in float64 and by searching, for those without that package; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bot.checks.reading.checkpoint import PackedWeight, TensorRef
from bot.checks.reading.packed import extras as extras
from bot.checks.reading.packed import modules as modules
from bot.checks.reading.packed import read_component
from bot.records import Json

NAME = "MXFP4"
PACKAGE = "transformers"
GROUP = 32
STRIP = 1 << 20  # numbers of an expert that are looked at together
LEVELS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)  # of e2m1
MIDDLES = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], dtype=torch.float64)
SCALES = torch.ldexp(torch.ones(254).double(), torch.arange(254) - 127)


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


def dense(packed: PackedWeight, slab: int) -> Tensor:
    """transformers' conversion of one expert."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = (read_component(packed.components[role], slab)[None] for role in ("blocks", "scales"))
    experts: Tensor = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    return experts[0]


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
    shape = (*scales.shape, GROUP)
    groups, before = exact.reshape(shape), stored.reshape(shape)
    touched = (groups != before).any(-1)
    if not torch.isfinite(groups[touched]).all():
        raise ValueError("it holds a NaN or Inf, which MXFP4 cannot hold")
    numbers = groups[touched].double()
    # A scale byte is right up to where the next one begins: at 7 of its scales.
    byte = torch.searchsorted(7 * SCALES, numbers.abs().amax(-1), right=True)
    size = numbers.abs() / SCALES[byte, None]
    down, up = torch.searchsorted(MIDDLES, size), torch.searchsorted(MIDDLES, size, right=True)
    near = torch.where(down % 2 == 0, down, up)
    changed = (LEVELS[near] * SCALES[byte, None] * numbers.sign() != before[touched]).any(-1)
    codes = (near + 8 * (numbers < 0))[changed]
    touched[touched.clone()] = changed
    blocks[touched] = (codes[:, 0::2] + 16 * codes[:, 1::2]).to(torch.uint8)
    scales[touched] = byte[changed].to(torch.uint8)
