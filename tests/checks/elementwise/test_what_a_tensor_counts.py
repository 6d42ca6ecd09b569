"""What the sweep counts of one tensor: every wrong number once, every NaN and infinity by whose it is, what is left of the adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bot.checks.elementwise import rederive, row_comparisons
from bot.checks.elementwise import sweep as sweep_module
from bot.checks.elementwise.rederive import KINDS, NUMPY, Likeness, Numbers, compare, product
from bot.checks.elementwise.rounding import round_once
from bot.checks.elementwise.tally import Tally
from bot.checks.expected.changes import AddProduct, Expected, SetRows, TensorStep
from bot.checks.expected.claims import Claims
from bot.checks.reading.checkpoint import Matrix, TensorRef, read_checkpoint
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
    root: Path, own: Tensor, merged: Tensor, delta: Delta | None = None, *, new: bool = False
) -> Tally:  # fmt: skip
    """Base and merge of one tensor, swept. `new`: the base has it under another key."""
    if delta is None:
        return tally_of_step(root, own, merged, {}, new=new)
    factors = {"left": delta.left, "right": delta.right}
    step = rectangle(range(own.shape[0]), range(own.shape[1]))
    return tally_of_step(root, own, merged, factors, step, new=new)


def tally_of_step(
    root: Path, own: Tensor, merged: Tensor, adapter: dict[str, Tensor],
    *made: Callable[[dict[str, TensorRef]], TensorStep], new: bool = False,
) -> Tally:  # fmt: skip
    """The same with any steps, made of the adapter's tensors as they are stored."""
    for name, tensors in (("base", {KEY: own}), ("adapter", adapter), ("merged", {KEY: merged})):
        (root / name).mkdir(parents=True, exist_ok=True)
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
    source = read_checkpoint(root / "base").tensors[KEY]
    height, width = own.shape if own.dim() == 2 else (1, own.numel())
    held = dict(read_checkpoint(root / "adapter").tensors)
    steps = tuple(step(held) for step in made)
    wanted = Expected(
        key=KEY, base=None if new else source, source=source, dtype=source.dtype, view=(height, width), steps=steps
    )
    claims = Claims(method="LoRA", tensors=len(adapter), expected={KEY: wanted})
    merged_files = read_checkpoint(root / "merged")
    return sweep_module.sweep(merged_files, claims, False, silent, threads=1).tallies[KEY]


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


@pytest.mark.parametrize(
    ("source", "stored"), [*((dtype, dtype) for dtype in (BF16, F16, F32, F64, torch.int64)), (F32, BF16)]
)
def test_a_scalar_is_one_number(tmp_path: Path, source: torch.dtype, stored: torch.dtype):
    own = torch.tensor(3).to(source)
    right = tally_of(tmp_path / "right", own, own.to(stored))
    wrong = tally_of(tmp_path / "wrong", own, torch.tensor(4).to(stored))
    assert [(tally.elements, tally.wrong, tally.changed) for tally in (right, wrong)] == [(1, 0, 0), (1, 1, 1)]


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


HEIGHT, WIDTH, RANGE = 10, 40, 4  # rows, columns, and the rows that are looked at together


def rectangle(rows: range, columns: range) -> Callable[[dict[str, TensorRef]], TensorStep]:
    """A product on those rows and columns."""

    def step(held: dict[str, TensorRef]) -> TensorStep:
        rank = range(held["right"].stored.shape[0])
        left = Matrix(ref=held["left"], rows=range(len(rows)), columns=rank)
        right = Matrix(ref=held["right"], rows=rank, columns=range(len(columns)))
        return AddProduct(
            module="m", uses=("left", "right"), rows=(rows.start, rows.stop), every=rows.step, scaling=1.0,
            columns=(columns.start, columns.stop), left=left, right=right,
        )  # fmt: skip

    return step


def set_rows(*at: int) -> Callable[[dict[str, TensorRef]], TensorStep]:
    """Some rows, replaced."""
    return lambda held: SetRows(
        module="m", uses=("rows",), rows=(0, max(at) + 1), columns=(0, WIDTH), at=at, values=held["rows"]
    )


@pytest.mark.parametrize("row", range(1, HEIGHT))
def test_a_row_that_should_have_been_replaced_is_missed_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int
):
    """Though another was: from then on what is the base's is looked at as fast as what is not."""
    own, values = numbers(BF16, HEIGHT, WIDTH), torch.full((2, WIDTH), 9.0, dtype=BF16)
    right, half = own.clone(), own.clone()
    right[row] = right[0] = half[0] = values[0]
    monkeypatch.setattr(sweep_module, "AT_ONCE", RANGE * WIDTH)
    for merged, wrong in ((right, 0), (half, WIDTH)):
        tally = tally_of_step(tmp_path, own, merged, {"rows": values}, set_rows(0, row))
        assert (tally.wrong, tally.changed) == (wrong, 2 * WIDTH - wrong)


ROWS = [
    range(3, 7),
    range(1, 4),
    range(4, 8),
    range(8, 10),
    range(1, 2),
    range(9, 10),
    range(1, 10, 2),
    range(2, 10, 3),
]


@pytest.mark.parametrize("columns", [range(WIDTH), range(8, 24), range(1), range(39, WIDTH)], ids=str)
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_a_product_on_part_of_a_tensor_is_missed_wherever_it_is_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: range, columns: range
):
    own = numbers(BF16, HEIGHT, WIDTH)
    delta = Delta(left=torch.ones(len(rows), 3), right=torch.ones(3, len(columns)))
    values = torch.full((1, WIDTH), 9.0, dtype=BF16)  # the first row is another step's, and right
    own_but_for_it, beyond = (
        own.clone(),
        merge_of(own, Delta(left=torch.ones(HEIGHT, 3), right=torch.ones(3, WIDTH)), BF16),
    )
    inside = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    for row in rows:
        inside[row, columns.start : columns.stop] = True
    own_but_for_it[0] = beyond[0] = values[0]
    right = own_but_for_it.where(~inside, beyond)
    monkeypatch.setattr(sweep_module, "AT_ONCE", RANGE * WIDTH)
    count = int(inside.sum())
    for merged, wrong in ((right, 0), (own_but_for_it, count), (beyond, (HEIGHT - 1) * WIDTH - count)):
        adapter = {"left": delta.left, "right": delta.right, "rows": values}
        assert tally_of_step(tmp_path, own, merged, adapter, set_rows(0), rectangle(rows, columns)).wrong == wrong
