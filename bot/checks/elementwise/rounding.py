"""Rounding from float64 to a storage dtype, once and correctly: to nearest, ties to even.

torch converts float64 to bfloat16 and float16 by way of float32, which rounds twice. Rounding to odd on the way cures
that (Boldo & Melquiond 2008, "Emulation of a FMA and correctly rounded sums": 24 ≥ 11 + 2 bits suffice).
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from bot.checks.elementwise import _at_random as compiled
except ImportError:  # installed where there is no C compiler
    compiled = None  # type: ignore[assignment]

# Unit roundoff: the largest relative error of one rounding to nearest, 2⁻ᵖ for p significant bits.
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

EXPONENT = 0x7FF0_0000_0000_0000
DROPPED = {torch.float32: 29, torch.float16: 42, torch.bfloat16: 45}  # of float64's 52 bits after the point
SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}  # the subnormal spacing


def round_once(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 → `dtype`, correctly rounded; any shape."""
    if dtype in (torch.float64, torch.float32):
        return exact.to(dtype)
    near = exact.to(torch.float32)
    if dtype == torch.bfloat16 and not _on_a_midpoint(near):
        return near.to(dtype)  # the second rounding can only go wrong where the first one landed on a midpoint
    return _to_odd(exact, near).to(dtype)


def clamp(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Finite numbers that are too large for `dtype`, as its largest; any shape, float64 → float64."""
    largest = torch.finfo(dtype).max
    return torch.where(exact.isfinite(), exact.clamp(-largest, largest), exact)


def _on_a_midpoint(near: Tensor) -> bool:
    """Whether any float32 lies exactly between two bfloat16 neighbours: the dropped 16 bits are 1000…0."""
    return bool((near.view(torch.int32).bitwise_and(0xFFFF) == 0x8000).any())


def _to_odd(exact: Tensor, near: Tensor) -> Tensor:
    """float32 by rounding to odd: an inexact result takes the neighbour (of the two around it) whose last bit is 1."""
    back = near.to(torch.float64)
    bits = near.view(torch.int32)
    inexact_and_even = (back != exact) & (bits.bitwise_and(1) == 0)
    step = torch.where(exact.abs() > back.abs(), 1, -1).to(torch.int32)
    # By one in magnitude, so that what became 0 or −0 becomes the smallest of its sign.
    return (bits + step * inexact_and_even).view(torch.float32)


def round_stochastically(exact: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """float64 → a float64 that `dtype` can hold: up or down, at odds that make the expectation exact; finite values.

    A random number below the last bit that is kept is added to the magnitude, as an integer, and what is below it is cut
    off: the carry comes with the probability of what was cut. (It goes on into the exponent as it should.) The generator, the
    processor's, gives a seed; the rest follows from that and from where an element stands: the same bits compiled and not, and
    on every device.
    """
    if dtype == torch.float64:
        return exact
    seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
    cut, normal, smallest = DROPPED[dtype], torch.finfo(dtype).tiny, SMALLEST[dtype]
    if compiled is not None and exact.device.type == "cpu":
        exact = exact.contiguous()
        out = torch.empty_like(exact)
        compiled.round_at_random(exact.numpy(), out.numpy(), cut, normal, smallest, seed)
        return out
    drawn = _drawn(seed, exact)
    rounded = (drawn & ((1 << cut) - 1)).add_(exact.view(torch.int64)).bitwise_and_(-1 << cut).view(exact.dtype)
    subnormal = exact.abs() < normal
    if subnormal.any():  # there the spacing no longer follows the exponent
        chance = _shifted(drawn[subnormal], 11).double() * 2.0**-53
        rounded[subnormal] = chance.add_(exact[subnormal] / smallest).floor_().mul_(smallest)
    return rounded


def add_stochastically(
    weight: Tensor, delta: Tensor, dtype: torch.dtype, generator: torch.Generator, out: Tensor
) -> None:
    """out ← weight + delta in float64, rounded as by `round_stochastically`, which gives the same numbers; one pass where it is
    compiled and the weight bfloat16 or float32. `delta`: float64; `out`: float32; all of one shape and C-contiguous."""
    if compiled is None or weight.dtype not in (torch.bfloat16, torch.float32) or weight.device.type != "cpu":
        out.copy_(round_stochastically(delta + weight, dtype, generator))
        return
    seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
    storage = (DROPPED[dtype], torch.finfo(dtype).tiny, SMALLEST[dtype])
    held = weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight
    compiled.add_at_random(held.numpy(), delta.numpy(), out.numpy(), *storage, seed)


def _drawn(seed: int, like: Tensor) -> Tensor:
    """SplitMix64's numbers for a seed, one for each element, as int64; see _at_random.c."""
    mixed = (
        torch.arange(1, like.numel() + 1, device=like.device)
        .view(like.shape)
        .mul_(_signed(0x9E3779B97F4A7C15))
        .add_(seed)
    )
    mixed = (mixed ^ _shifted(mixed, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    mixed = (mixed ^ _shifted(mixed, 27)).mul_(_signed(0x94D049BB133111EB))
    return mixed ^ _shifted(mixed, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, with zeros coming in: torch's own shift brings the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    """64 bits as torch's int64 has them."""
    return bits - (1 << 64) if bits >> 63 else bits
