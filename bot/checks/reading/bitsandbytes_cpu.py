"""bitsandbytes' own four-bit arithmetic on the CPU, and the one number of it that depends on the machine.

Double quantisation takes the mean of the blocks' largest values off; bitsandbytes sums them in float32, in an order that
changes with the threads. Where nothing was stored, it is their exact sum here, divided and rounded once, which lies within
that variation; where it was, the stored one is taken, if it does too.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from bot.checks.reading.bitsandbytes_settings import OUTER

SMALL_SUM = 32  # float32 sums of so many terms, and then of pairs: torch's own way


def library() -> Any:
    """bitsandbytes.functional, without the advice that it logs while it is imported."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from bitsandbytes import functional

    return functional


def quantised(weight: Tensor, kind: str, double: bool, size: int, offset: Tensor | None = None) -> tuple[Tensor, Any]:
    """bitsandbytes' quantize_4bit on the CPU: (codes, state). `offset`: the mean that double quantisation takes off."""
    functional = library()
    codes, state = functional.quantize_4bit(weight, blocksize=size, quant_type=kind, compress_statistics=False)
    if double:
        offset = exact_mean(state.absmax) if offset is None else offset
        absmax, outer = functional.quantize_blockwise(state.absmax - offset, blocksize=OUTER)
        state = functional.QuantState(absmax=absmax, shape=state.shape, dtype=state.dtype, blocksize=size, code=state.code,
                                      quant_type=kind, offset=offset, state2=outer)  # fmt: skip
    return codes, state


def dequantised(codes: Tensor, state: Any) -> Tensor:
    """bitsandbytes' dequantize_4bit, in float32 whatever dtype the state names.

    Where a row is no whole number of blocks, by its plain kernel: the one for AVX512 takes wrong blocks there.
    """
    functional = library()
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    codes = codes.view(torch.uint8).reshape(-1, 1)
    state.dtype = torch.float32
    if state.shape[-1] % state.blocksize == 0:
        return functional.dequantize_4bit(codes, state)  # type: ignore[no-any-return]
    absmax = state.absmax
    if state.nested:
        absmax = functional.dequantize_blockwise(absmax, state.state2) + state.offset
    plain = getattr(_dequantize_4bit_compute, "__wrapped__", _dequantize_4bit_compute)
    code = functional.get_4bit_type(state.quant_type, device=torch.device("cpu"))
    return plain(codes.reshape(-1), absmax.float(), code, state.blocksize, state.shape, torch.float32)  # type: ignore[no-any-return]


def exact_mean(absmax: Tensor) -> Tensor:
    """The mean of float32 numbers, rounded once to float32 (the sum exactly: math.fsum)."""
    return torch.tensor(math.fsum(absmax.tolist()) / absmax.numel(), dtype=torch.float64).to(torch.float32)


def is_a_mean(offset: float, absmax: Tensor) -> bool:
    """Whether some order of float32 additions, as torch makes them, may give this mean."""
    exact = float(exact_mean(absmax))
    roundings = SMALL_SUM + math.log2(max(2, absmax.numel()))
    return abs(offset - exact) <= roundings * 2.0**-24 * abs(exact)
