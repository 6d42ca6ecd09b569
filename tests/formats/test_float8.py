"""Numbers of eight bits are torch's, every one of them."""

from __future__ import annotations

import numpy as np
import torch

from bot.formats.float8 import E2M1_PAIRS, E4M3, E8M0, POWERS, encode_e4m3
from bot.formats.fp8.encoding import bfloat16, power_of_two, stored


def test_every_code_decodes_as_torch_decodes_it() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(E4M3, codes.view(torch.float8_e4m3fn).float().numpy())
    np.testing.assert_array_equal(np.signbit(E4M3), np.signbit(codes.view(torch.float8_e4m3fn).float().numpy()))
    np.testing.assert_array_equal(E8M0, codes.view(torch.float8_e8m0fnu).float().numpy())
    np.testing.assert_array_equal(POWERS, (codes.float() - 127).exp2().numpy())


def test_two_numbers_of_four_bits_lie_in_a_byte_the_low_ones_first() -> None:
    from transformers.integrations.mxfp4 import FP4_VALUES

    pairs = E2M1_PAIRS.view(np.float32).reshape(256, 2)
    for byte in range(256):
        wanted = np.array([FP4_VALUES[byte & 15], FP4_VALUES[byte >> 4]], np.float32)
        assert pairs[byte].tobytes() == wanted.tobytes()


def test_every_rounding_is_torchs() -> None:
    """All bfloat16 numbers, all midpoints between codes, and what lies next to those."""
    all_bfloat16 = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    finite = np.sort(E4M3[np.isfinite(E4M3)])
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    near = [np.nextafter(middles, np.float32(one)) for one in (-np.inf, np.inf)]
    random = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32)
    values = np.concatenate([all_bfloat16, middles, *near, random, random * 1e-3, random * 200])
    theirs = torch.from_numpy(values).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    lost = np.isnan(values)
    ours = encode_e4m3(values)
    np.testing.assert_array_equal(ours[~lost], theirs[~lost])
    assert ((ours[lost] & 0x7F) == 0x7F).all()


def test_scales_are_rounded_as_their_dtypes_say() -> None:
    values = np.abs(np.random.default_rng(1).standard_normal(4096).astype(np.float32)) * 1e-4 + 1e-9
    np.testing.assert_array_equal(bfloat16(values), torch.from_numpy(values).bfloat16().float().numpy())
    powers = power_of_two(values)
    assert ((powers >= values) & (powers < 2 * values)).all()
    np.testing.assert_array_equal(power_of_two(powers), powers)
    back = torch.from_numpy(stored(powers, "F8_E8M0")).view(torch.float8_e8m0fnu).float().numpy()
    np.testing.assert_array_equal(back, powers)
