"""What the sweep counts of one tensor: every wrong number once, every NaN and infinity by whose it is, what is left of the adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bot.checks.elementwise import rederive, row_comparisons
from bot.checks.elementwise.rederive import KINDS, NUMPY, Likeness, Numbers, compare, product
from bot.checks.elementwise.rounding import round_once
from bot.checks.elementwise.sweep import sweep
from bot.checks.elementwise.tally import Tally
from bot.checks.expected.changes import AddProduct, Expected
from bot.checks.expected.claims import Claims
from bot.checks.reading.checkpoint import Matrix, read_checkpoint
from bot.events import silent

Tensor = torch.Tensor
KEY = "model.layers.0.q.weight"
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
NAN, INF = float("nan"), float("inf")
KINDS_OF_FLOAT = pytest.mark.parametrize("dtype", [BF16, F16, F32, F64], ids=str)


@dataclass(frozen=True, kw_only=True)
class Delta:
    """left · right, to be added."""

    left: Tensor
    right: Tensor


def tally_of(
    root: Path, own: Tensor, merged: Tensor, delta: Delta | None = None, *, new: bool = False, clamps: bool = False,
    foreign: bool = False,
) -> Tally:  # fmt: skip
    """Base and merge of one tensor, swept. `new`: the base has it under another key."""
    factors = {} if delta is None else {"left": delta.left, "right": delta.right}
    for name, tensors in (("base", {KEY: own}), ("adapter", factors), ("merged", {KEY: merged})):
        (root / name).mkdir(parents=True, exist_ok=True)
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
    source = read_checkpoint(root / "base").tensors[KEY]
    height, width = own.shape
    steps: tuple[AddProduct, ...] = ()
    if delta is not None:
        held, rank = read_checkpoint(root / "adapter").tensors, range(delta.left.shape[1])
        steps = (
            AddProduct(
                module="m", uses=("left", "right"), rows=(0, height), columns=(0, width), scaling=1.0,
                left=Matrix(ref=held["left"], rows=range(height), columns=rank),
                right=Matrix(ref=held["right"], rows=rank, columns=range(width)),
            ),
        )  # fmt: skip
    wanted = Expected(
        key=KEY, base=None if new else source, source=source, dtype=source.dtype, view=(height, width), steps=steps
    )
    claims = Claims(method="LoRA", tensors=len(factors), expected={KEY: wanted})
    return sweep(read_checkpoint(root / "merged"), claims, clamps, silent, foreign=foreign, threads=1).tallies[KEY]


def numbers(dtype: torch.dtype, height: int = 6, width: int = 40) -> Tensor:
    drawn = torch.randn(height, width, generator=torch.Generator().manual_seed(7), dtype=F64)
    return round_once(drawn, dtype)


def delta_of(own: Tensor) -> Delta:
    random = torch.Generator().manual_seed(8)
    left, right = (torch.randn(*shape, generator=random) for shape in ((own.shape[0], 3), (3, own.shape[1])))
    return Delta(left=left * 0.1, right=right)


def merge_of(own: Tensor, delta: Delta, dtype: torch.dtype) -> Tensor:
    return round_once(own.double() + delta.left.double() @ delta.right.double(), dtype)


def spoilt(own: Tensor) -> Tensor:
    """Three infinities and two NaN in places that end in every bit."""
    own = own.clone()
    own[0, 0], own[1, 3], own[5, 39], own[2, 2], own[4, 20] = INF, -INF, INF, NAN, NAN
    return own


@KINDS_OF_FLOAT
def test_what_the_base_has_of_nan_and_infinity_is_counted_apart_from_what_is_new(tmp_path: Path, dtype: torch.dtype):
    own = spoilt(numbers(dtype))
    merged = own.clone()
    assert counts(tally_of(tmp_path / "same", own, merged)) == (0, 0, 3, 2)
    merged[3, 3:7] = torch.tensor([INF, -INF, NAN, INF])
    assert counts(tally_of(tmp_path / "more", own, merged)) == (4, 4, 3, 2)
    merged[0, 0], merged[2, 2] = NAN, -INF  # each the other kind, where the base has none that is finite either
    assert counts(tally_of(tmp_path / "other", own, merged)) == (6, 4, 3, 2)


@pytest.mark.parametrize("infinity", [INF, -INF])
@KINDS_OF_FLOAT
def test_a_lone_infinity_of_the_bases_is_seen(tmp_path: Path, dtype: torch.dtype, infinity: float):
    own = torch.zeros(6, 40, dtype=dtype)  # no bit of which could be taken for one of an infinity's
    own[2, 7] = infinity
    assert counts(tally_of(tmp_path, own, own)) == (0, 0, 1, 0)


@pytest.mark.parametrize(("source", "stored"), [(BF16, F32), (F32, BF16), (F16, BF16), (F64, F32)])
def test_so_it_is_in_another_dtype(tmp_path: Path, source: torch.dtype, stored: torch.dtype):
    own = spoilt(numbers(source))
    merged = round_once(own.double(), stored)
    assert counts(tally_of(tmp_path / "same", own, merged)) == (0, 0, 3, 2)
    merged[3, 3:6] = torch.tensor([INF, 5.0, NAN])
    tally = tally_of(tmp_path / "more", own, merged)
    assert counts(tally) == (3, 2, 3, 2)
    assert (tally.changed, tally.elements) == (3, own.numel())


@KINDS_OF_FLOAT
def test_so_it_is_where_the_adapter_adds(tmp_path: Path, dtype: torch.dtype):
    own = numbers(dtype)
    own[0, 0], own[1, 3], own[5, 39] = INF, -INF, INF
    delta = delta_of(own)
    merged = merge_of(own, delta, dtype)
    assert counts(tally_of(tmp_path / "right", own, merged, delta)) == (0, 0, 3, 0)
    merged[3, 3:6] = torch.tensor([INF, 5.0, NAN])
    assert counts(tally_of(tmp_path / "more", own, merged, delta)) == (3, 2, 3, 0)


def counts(tally: Tally) -> tuple[int, int, int, int]:
    return tally.wrong, tally.bad, tally.inherited, tally.unnumbered


@pytest.mark.parametrize("dtype", [BF16, F16, F32, F64, torch.int64, torch.uint8, torch.bool], ids=str)
def test_a_number_all_of_whose_bytes_differ_is_one_wrong_number(tmp_path: Path, dtype: torch.dtype):
    own = torch.zeros(6, 40, dtype=dtype)
    merged = own.clone()
    raw = merged.view(torch.uint8).view(6, -1)
    size = own.element_size()
    for row, column in ((0, 0), (3, 11), (5, 39)):
        raw[row, column * size : (column + 1) * size] = 0x01
    tally = tally_of(tmp_path, own, merged)
    assert (tally.wrong, tally.changed, tally.elements, tally.bad) == (3, 3, 240, 0)


def test_bytes_that_are_no_floats_are_neither_nan_nor_infinity(tmp_path: Path):
    own = torch.full((6, 40), -1, dtype=torch.int64)
    assert counts(tally_of(tmp_path, own, own)) == (0, 0, 0, 0)


@KINDS_OF_FLOAT
def test_a_tensor_without_elements_is_right(tmp_path: Path, dtype: torch.dtype):
    empty = torch.empty(4, 0, dtype=dtype)
    assert tally_of(tmp_path, empty, empty).elements == 0


@pytest.mark.parametrize(("source", "stored"), [(BF16, BF16), (F16, F16), (F32, F32)])
def test_a_right_merge_is_settled_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: torch.dtype, stored: torch.dtype
):
    """Number by number it would take a hundred times as long."""

    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("made again number by number")

    own = numbers(source)
    delta = delta_of(own)
    monkeypatch.setattr(row_comparisons, "_compare_each", never)
    tally = tally_of(tmp_path, own, merge_of(own, delta, stored), delta)
    assert (tally.wrong, tally.elements, tally.keeps) == (0, 240, {"stored"})


# How large the delta is beside a weight of 1, and where it shows.
KEPT = {2.0**-3: {"stored"}, 2.0**-15: {"any", "float32"}, 2.0**-40: {"any"}, 2.0**-70: {"any"}, 0.0: set[str]()}


@pytest.mark.parametrize("new", [False, True], ids=["the base's key", "a new key"])
@pytest.mark.parametrize("size", KEPT)
def test_where_the_adapter_shows_is_the_narrowest_dtype_that_holds_it(tmp_path: Path, size: float, new: bool):
    """In one column of many; a NaN of the base's, which is no change, stands beside it."""
    own = torch.ones(4, 40, dtype=BF16)
    own[2, 5] = NAN
    delta = Delta(left=torch.full((4, 1), size), right=torch.zeros(1, 40))
    delta.right[0, 17] = 1.0
    tally = tally_of(tmp_path, own, merge_of(own, delta, BF16), delta, new=new)
    assert tally.keeps == KEPT[size]


@pytest.mark.skipif(not KINDS, reason="installed without a C compiler")
def test_the_compiled_loop_runs_where_there_is_one_and_numpy_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    def never(*arguments: object) -> Likeness:
        raise AssertionError("in numpy")

    monkeypatch.setattr(rederive, "_compare_in_numpy", never)
    zeros = Numbers(held=np.zeros((3, 20), np.float32), dtype="F32")
    ones = np.ones((3, 2)), np.ones((2, 20))
    for kind in (None, *KINDS):
        assert compare(zeros, zeros, *ones, kind) == Likeness(equal=0, same=60, kept=0.0, power=240.0, size=0.0)
        assert np.array_equal(product(*ones, kind), np.full((3, 20), 2.0))
    with pytest.raises(AssertionError, match="in numpy"):
        compare(zeros, zeros, *ones, NUMPY)
