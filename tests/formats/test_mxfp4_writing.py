"""MXFP4 over MXFP4: the numbers are compressed-tensors', groups that stay keep their bytes, and one expert is held at a time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4
from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales

from bot.checks.reading import mxfp4 as verifier
from bot.checks.reading.checkpoint import read_checkpoint
from bot.checks.reading.quantised import as_model
from bot.errors import Refused
from bot.formats.mxfp4 import writer as module
from bot.formats.mxfp4.encoding import encode
from bot.formats.mxfp4.rows import decode
from bot.formats.mxfp4.writer import SameMxfp4Writer
from bot.records import Json
from tests.formats.shelf import reader_of, save, unpacked, values, written

KEY = "model.layers.0.mlp.experts.down_proj"
CONFIG: Json = {"quantization_config": {"quant_method": "mxfp4"}}
LEVELS = [Fraction(number) for number in ("0", "1/2", "1", "3/2", "2", "3", "4", "6")]


def base(folder: Path, blocks: torch.Tensor, scales: torch.Tensor) -> Path:
    return save(folder, {f"{KEY}_blocks": blocks, f"{KEY}_scales": scales}, CONFIG)


def merged_over(folder: Path, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is stored where the merge is this weight, experts × in × out."""
    writer = SameMxfp4Writer(tensor=unpacked(folder).tensors[KEY], read=reader_of(folder))
    assert writer.applies(KEY, tuple(weight.shape))
    made = written(writer, KEY, weight)
    return made[f"{KEY}_blocks"], made[f"{KEY}_scales"]


def proven_over(folder: Path, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by the verifier's own code."""
    packed = as_model(read_checkpoint(folder), CONFIG, "base").tensors[KEY].packed
    assert packed is not None
    experts = [verifier.slab_written_again(weight[expert], packed, expert) for expert in range(len(weight))]
    return torch.stack([one["blocks"] for one in experts]), torch.stack([one["scales"] for one in experts])


def anything(experts: int, out: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (experts, out, groups, 16), dtype=torch.uint8)
    return blocks, torch.randint(100, 140, (experts, out, groups), dtype=torch.uint8)


def by_hand(group: np.ndarray) -> tuple[int, list[int]]:
    """(scale byte, codes) of 32 numbers, in rational numbers: nothing is rounded but what the rule rounds."""
    exact = [Fraction(float(number)) for number in group]
    largest = max(map(abs, exact))
    byte = next(byte for byte in range(254) if largest < 7 * Fraction(2) ** (byte - 127))
    codes = []
    for number in exact:
        size = abs(number) / Fraction(2) ** (byte - 127)
        nearest = min(range(8), key=lambda code: (abs(LEVELS[code] - size), code % 2))
        codes.append(nearest + 8 * (number < 0))
    return byte, codes


def codes_of(blocks: np.ndarray) -> list[int]:
    return [code for byte in blocks.tolist() for code in (byte & 15, byte >> 4)]


def test_groups_are_quantised_as_compressed_tensors_quantises_them() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4000, 32) * torch.logspace(-34, 34, 4000)[:, None]
    blocks, scales = encode(weight.numpy())
    assert torch.equal(torch.from_numpy(scales).float(), generate_mx_scales(weight.abs().amax(1)))
    scale = 2.0 ** (torch.from_numpy(scales).double() - 127)[:, None]
    meant = cast_to_fp4((weight.double() / scale).float()).double() * scale
    assert torch.equal(torch.from_numpy(decode(blocks, scales)).double(), meant)


EDGES = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, 8.0], np.float32)


@pytest.mark.parametrize("byte", [0, 1, 2, 120, 127, 252, 253])
def test_numbers_in_the_middle_and_at_the_ends_are_rounded_as_the_rule_says(byte: int) -> None:
    """Every middle between two numbers and where a scale is doubled, one float32 below it and one above, of either sign."""
    near = np.concatenate([np.nextafter(EDGES, np.float32(0)), EDGES, np.nextafter(EDGES, np.float32(9))])
    rng = np.random.default_rng(byte)
    with np.errstate(over="ignore", under="ignore"):
        scaled = np.ldexp(np.concatenate([near, -near]), byte - 127).astype(np.float32)
    scaled = scaled[np.isfinite(scaled)]
    groups = np.stack([rng.permutation(np.resize(scaled[rng.random(len(scaled)) < 0.6], 32)) for _ in range(200)])
    groups *= (np.abs(groups) <= np.ldexp(rng.choice([5.0, 6.0, 7.0, 7.5, 9.0], (200, 1)), byte - 127)) + 0.0
    blocks, scales = encode(groups)
    for group, block, scale in zip(groups, blocks, scales, strict=True):
        assert (int(scale), codes_of(block)) == by_hand(group)


def test_numbers_that_are_too_small_and_the_largest_one(tmp_path: Path) -> None:
    tiny, huge = np.float32(2.0**-149), np.finfo(np.float32).max
    groups = np.zeros((4, 32), np.float32)
    groups[1, :2] = tiny, -tiny
    groups[2, :2] = -0.0, -huge
    groups[3, :3] = 1.5e38, -tiny, 1e38
    blocks, scales = encode(groups)
    assert scales.tolist() == [0, 0, 253, by_hand(groups[3])[0]]
    assert [codes_of(block) for block in blocks] == [by_hand(group)[1] for group in groups]


def test_what_the_merge_leaves_alone_keeps_its_bytes_whatever_they_are(tmp_path: Path) -> None:
    """Every byte under every scale, an expert for each; groups of zeros and of small codes, which could be written otherwise, too."""
    blocks = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 1, 16)
    small = torch.tensor([0x00, 0x80, 0x08, 0x11, 0x19, 0x22], dtype=torch.uint8)
    uniform = small[:, None].expand(6, 16).reshape(1, 6, 1, 16)
    blocks = torch.cat([blocks, uniform], 1).repeat(256, 1, 1, 1)
    scales = torch.arange(256, dtype=torch.uint8)[:, None, None].repeat(1, 22, 1)
    folder = base(tmp_path, blocks, scales)
    for again in (merged_over(folder, values(folder)[KEY]), proven_over(folder, values(folder)[KEY])):
        assert torch.equal(again[0], blocks)
        assert torch.equal(again[1], scales)


def test_what_is_quantised_comes_back_byte_for_byte_without_the_base() -> None:
    """Under the scale that the rule takes; the same numbers under another one come back as numbers."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3000, 16), dtype=np.uint8)
    blocks[:, 0] |= 0x66  # a number of 4 or 6 scales at least
    blocks = np.where((blocks & 0x0F) == 8, blocks & 0xF0, blocks)  # −0 comes back as 0
    blocks = np.where((blocks & 0xF0) == 0x80, blocks & 0x0F, blocks)
    scales = rng.integers(0, 254, 3000, dtype=np.uint8)
    meant = decode(blocks, scales)
    finite = np.isfinite(meant).all(-1)
    again = encode(meant[finite])
    assert np.array_equal(again[0], blocks[finite])
    assert np.array_equal(again[1], scales[finite])
    blocks[:, 0] &= 0x99
    low, exponents = encode(decode(blocks & 0xBB, scales)[finite])
    assert np.array_equal(decode(low, exponents), decode(blocks & 0xBB, scales)[finite])


@pytest.mark.parametrize("strip", [1, 100, 4096, 1 << 20])
def test_the_merger_and_the_verifier_write_the_same_whatever_is_taken_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strip: int
) -> None:
    folder = base(tmp_path, *anything(3, 40, 5))
    weight = values(folder)[KEY]
    merged = weight + torch.randn(weight.shape) * 0.02 * weight.abs().amax() * (torch.rand(weight.shape) < 0.01)
    monkeypatch.setattr(module, "STRIP", strip)
    monkeypatch.setattr(verifier, "STRIP", strip)
    ours, theirs = merged_over(folder, merged), proven_over(folder, merged)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    before = anything(3, 40, 5)
    groups = merged.reshape(3, 5, 32, 40).permute(0, 3, 1, 2) != weight.reshape(3, 5, 32, 40).permute(0, 3, 1, 2)
    stays = ~groups.any(-1)
    assert 0 < stays.sum() < stays.numel()
    assert torch.equal(ours[0][stays], before[0][stays])
    assert torch.equal(ours[1][stays], before[1][stays])


def test_a_changed_group_is_the_nearest_numbers_under_its_scale(tmp_path: Path) -> None:
    folder = base(tmp_path, *anything(1, 8, 2))
    merged = values(folder)[KEY] * 1.3
    blocks, scales = merged_over(folder, merged)
    for out in range(8):
        for group in range(2):
            wanted = by_hand(merged[0, group * 32 : group * 32 + 32, out].numpy())
            assert (int(scales[0, out, group]), codes_of(blocks[0, out, group].numpy())) == wanted


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_refused_where_it_changes(tmp_path: Path, number: float) -> None:
    folder = base(tmp_path, *anything(2, 8, 2))
    merged = values(folder)[KEY]
    merged[1, 40, 3] = number
    with pytest.raises(Refused, match=r"down_proj holds a NaN or Inf, which MXFP4 cannot hold\."):
        merged_over(folder, merged)
    with pytest.raises(ValueError, match="NaN or Inf"):
        proven_over(folder, merged)


def test_a_scale_beyond_float32_is_never_written_anew(tmp_path: Path) -> None:
    """254 and 255 reach infinity, as transformers reads them; the specification's 255 is no number. Where the merge changes such a
    group and all of it is finite, it gets a scale below."""
    blocks = torch.zeros(1, 4, 1, 16, dtype=torch.uint8)
    blocks[..., 0] = 0x01  # half of 2^127 and of 2^128
    scales = torch.tensor([254, 255, 254, 255], dtype=torch.uint8).reshape(1, 4, 1)
    folder = base(tmp_path, blocks, scales)
    merged = values(folder)[KEY]
    merged[0, 1, 2:] = 2.0**125
    after = merged_over(folder, merged)[1]
    assert after.flatten().tolist() == [254, 255, 251, 252]
