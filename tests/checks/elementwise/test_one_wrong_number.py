"""One wrong number anywhere in a tensor is one wrong number of the report: at every edge of what the loop looks at together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bot.checks.elementwise import at_once
from bot.checks.elementwise.rederive import KINDS, NUMPY
from bot.checks.elementwise.rounding import round_once
from bot.checks.elementwise.sweep import AT_ONCE, sweep
from bot.checks.elementwise.tally import Tally
from bot.checks.expected.changes import AddProduct, Expected
from bot.checks.expected.claims import Claims
from bot.checks.reading.checkpoint import Checkpoint, Matrix, TensorRef, read_checkpoint
from bot.events import silent

TALL, WIDE, RANK, EXPERTS = 330, 1030, 5, 3  # more rows than are looked at together, and no multiple of anything
SCALING = 1.5
BREAK = AT_ONCE // WIDE  # the first row of the second range
KEY, STACK, PLAIN = "model.layers.0.q.weight", "model.layers.0.experts", "model.norm.weight"
Tensor = torch.Tensor
Place = tuple[int, int]
PLACES: dict[str, Place] = {
    "the first": (0, 0), "the last of the first row": (0, WIDE - 1), "the first of the last row": (TALL - 1, 0),
    "the very last": (TALL - 1, WIDE - 1), "the last of a tile": (7, 127), "the first of a tile": (7, 128),
    "the last of the last whole register": (8, 1023), "the first of the ragged rest": (8, 1024),
    "the last row of a band": (3, 500), "the first row of a band": (4, 500),
    "the last of a range": (BREAK - 1, WIDE - 1), "the first of a range": (BREAK, 0), "amid": (123, 456),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A base with a matrix, a stack of experts and a norm in two files; an adapter; and the right merge, by key."""

    root: Path
    claims: Claims
    right: dict[str, Tensor]

    def store(self, change: Callable[[dict[str, Tensor]], None] = lambda tensors: None) -> Checkpoint:
        """The merge on disk, changed."""
        tensors = {key: value.clone() for key, value in self.right.items()}
        change(tensors)
        folder = self.root / "merged"
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return read_checkpoint(folder)


def matrix(ref: TensorRef, rows: range, columns: range) -> Matrix:
    return Matrix(ref=ref, rows=rows, columns=columns)


def build(root: Path, dtype: torch.dtype, size: float = 0.02) -> Merge:
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64) * std

    base = {
        KEY: round_once(drawn(TALL, WIDE, std=size), dtype), PLAIN: round_once(drawn(WIDE, std=1.0), dtype),
        STACK: round_once(drawn(EXPERTS, 60, WIDE, std=size), dtype),
    }  # fmt: skip
    adapter = {"a": drawn(RANK, WIDE, std=0.3).float(), "b": drawn(TALL, RANK, std=size / 20).float()}
    for expert in range(1, EXPERTS):  # the first one is not tuned
        adapter |= {
            f"a{expert}": drawn(RANK, WIDE, std=0.3).float(),
            f"b{expert}": drawn(60, RANK, std=size / 20).float(),
        }
    for name, tensors in (("base", base), ("adapter", adapter)):
        (root / name).mkdir()
        save_file(tensors, root / name / "model.safetensors")
    stored, own = read_checkpoint(root / "base").tensors, read_checkpoint(root / "adapter").tensors

    def step(a: str, b: str, low: int, high: int) -> AddProduct:
        left, right = matrix(own[b], range(high - low), range(RANK)), matrix(own[a], range(RANK), range(WIDE))
        return AddProduct(
            module="m", uses=(a, b), rows=(low, high), columns=(0, WIDE), left=left, right=right, scaling=SCALING
        )

    def expected(key: str, view: tuple[int, int], *steps: AddProduct) -> Expected:
        ref = stored[key]
        return Expected(key=key, base=ref, source=ref, dtype=ref.dtype, view=view, steps=steps)

    experts = [step(f"a{expert}", f"b{expert}", 60 * expert, 60 * expert + 60) for expert in range(1, EXPERTS)]
    wanted = {
        KEY: expected(KEY, (TALL, WIDE), step("a", "b", 0, TALL)), PLAIN: expected(PLAIN, (WIDE, 1)),
        STACK: expected(STACK, (EXPERTS * 60, WIDE), *experts),
    }  # fmt: skip
    deltas = {pair: SCALING * adapter[f"b{pair}"].double() @ adapter[f"a{pair}"].double() for pair in ("", "1", "2")}
    stack = base[STACK].double() + torch.stack([torch.zeros_like(deltas["1"]), deltas["1"], deltas["2"]])
    right = {
        KEY: round_once(base[KEY].double() + deltas[""], dtype),
        STACK: round_once(stack, dtype),
        PLAIN: base[PLAIN],
    }
    return Merge(root=root, claims=Claims(method="LoRA", tensors=len(adapter), expected=wanted), right=right)


def swept(
    merge: Merge, change: Callable[[dict[str, Tensor]], None] = lambda tensors: None, threads: int = 2
) -> dict[str, Tally]:
    return sweep(merge.store(change), merge.claims, False, silent, threads=threads).tallies


def up(value: Tensor, steps: int = 1) -> Tensor:
    """The number so many places further in its dtype."""
    kind = torch.int16 if value.itemsize == 2 else torch.int32
    return (value.view(kind) + steps).view(value.dtype)


def at(key: str, place: Place, steps: int = 1) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        lines = tensors[key].view(-1, WIDE)
        lines[place] = up(lines[place], steps)

    return change


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def merge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Merge:
    return build(tmp_path_factory.mktemp("merge"), request.param)


@pytest.fixture(scope="module")
def bfloat16(tmp_path_factory: pytest.TempPathFactory) -> Merge:
    return build(tmp_path_factory.mktemp("merge"), torch.bfloat16)


@pytest.fixture(params=[*KINDS, NUMPY])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kind of loop in turn."""
    compare = at_once.compare
    monkeypatch.setattr(at_once, "compare", lambda *numbers: compare(*numbers, kind=request.param))
    return request.param


def test_a_right_merge_is_right_in_every_kind_and_dtype(merge: Merge, way: str):
    tallies = swept(merge)
    assert {(tally.wrong, tally.undecided, tally.bad, tally.arithmetic) for tally in tallies.values()} == {(0, 0, 0, 0)}
    assert tallies[KEY].elements == TALL * WIDE
    assert tallies[STACK].elements == EXPERTS * 60 * WIDE
    assert tallies[STACK].size == pytest.approx(float(_base(merge, STACK).square().sum()), rel=1e-12)
    assert 0 < tallies[STACK].changed <= 2 * 60 * WIDE
    assert tallies[KEY].keeps == tallies[STACK].keeps == {"stored"}


def _base(merge: Merge, key: str) -> Tensor:
    from safetensors.torch import load_file

    return load_file(merge.root / "base" / "model.safetensors")[key].double()


@pytest.mark.parametrize("name", PLACES)
def test_one_wrong_number_is_found_wherever_it_is(bfloat16: Merge, way: str, name: str):
    row, column = PLACES[name]
    tallies = swept(bfloat16, at(KEY, (row, column)))
    assert {key: tally.wrong for key, tally in tallies.items()} == {KEY: 1, STACK: 0, PLAIN: 0}
    assert tallies[KEY].example.startswith(f"[{row}, {column}] is ")


def test_one_wrong_number_is_found_in_every_dtype(merge: Merge):
    assert swept(merge, at(KEY, (17, 300), steps=-1))[KEY].wrong == 1
    assert swept(merge, lambda tensors: tensors[PLAIN].__setitem__(5, up(tensors[PLAIN][5])))[PLAIN].wrong == 1


@pytest.mark.parametrize("expert", range(EXPERTS))
def test_one_wrong_number_of_one_expert(bfloat16: Merge, expert: int):
    for row in (60 * expert, 60 * expert + 59):
        tallies = swept(bfloat16, at(STACK, (row, WIDE - 1)))
        assert (tallies[STACK].wrong, tallies[KEY].wrong) == (1, 0)


def test_one_row_that_was_not_merged(bfloat16: Merge):
    own = _base(bfloat16, KEY)[200].to(torch.bfloat16)
    differs = int((own != bfloat16.right[KEY][200]).sum())
    tally = swept(bfloat16, lambda tensors: tensors[KEY].__setitem__(200, own))[KEY]
    assert tally.wrong == differs > WIDE // 2


def test_two_wrong_numbers_that_cancel_in_a_norm(bfloat16: Merge):
    """The same step up and down: the sum, and to first order the norm, stay."""

    def change(tensors: dict[str, Tensor]) -> None:
        one, other = tensors[KEY][10, 20].clone(), tensors[KEY][10, 21].clone()
        tensors[KEY][10, 20], tensors[KEY][10, 21] = other, one

    assert swept(bfloat16, change)[KEY].wrong == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none(bfloat16: Merge, way: str, value: float):
    tally = swept(bfloat16, lambda tensors: tensors[KEY].__setitem__((40, 1029), value))[KEY]
    assert (tally.wrong, tally.bad, tally.inherited, tally.unnumbered) == (1, 1, 0, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_subnormal_numbers_are_held_to_their_own_spacing(tmp_path: Path, dtype: torch.dtype):
    merge = build(tmp_path, dtype, size=float(torch.finfo(dtype).tiny) / 4)
    assert int((merge.right[KEY].abs() < torch.finfo(dtype).tiny).sum()) > TALL * WIDE // 2
    tally = swept(merge)[KEY]
    assert (tally.wrong, tally.undecided) == (0, 0)
    row, column = (int(index) for index in (merge.right[KEY].abs() > 0).nonzero()[77])
    assert swept(merge, at(KEY, (row, column)))[KEY].wrong == 1


def test_the_other_neighbour_of_a_tie_is_too_close_to_call_and_the_next_is_wrong(tmp_path: Path, way: str):
    merge = build(tmp_path, torch.bfloat16)
    ones = {KEY: torch.full((TALL, WIDE), 1.0, dtype=torch.bfloat16)}
    factors = {"a": torch.zeros(RANK, WIDE), "b": torch.full((TALL, RANK), 2.0**-8)}
    factors["a"][0] = 1.0  # V is 1 + 2⁻⁸, half-way between 1 and 1 + 2⁻⁷
    for name, tensors in (("tied", ones), ("factors", factors)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    own, adapter = read_checkpoint(tmp_path / "tied").tensors[KEY], read_checkpoint(tmp_path / "factors").tensors
    left, right = matrix(adapter["b"], range(TALL), range(RANK)), matrix(adapter["a"], range(RANK), range(WIDE))
    step = AddProduct(
        module="m", uses=("a", "b"), rows=(0, TALL), columns=(0, WIDE), left=left, right=right, scaling=1.0
    )
    wanted = replace(merge.claims.expected[KEY], base=own, source=own, steps=(step,))
    tied = Merge(root=tmp_path, claims=replace(merge.claims, expected={KEY: wanted}), right=ones)
    for steps, counts in ((0, (0, 0)), (1, (0, 1)), (2, (1, 0)), (-1, (1, 0))):
        tally = swept(tied, at(KEY, (300, 1000), steps))[KEY]
        assert (tally.wrong, tally.undecided) == counts, steps


def test_what_is_found_is_the_same_to_the_last_bit_on_one_thread_and_on_several(bfloat16: Merge):
    def change(tensors: dict[str, Tensor]) -> None:
        for place in PLACES.values():
            at(KEY, place)(tensors)

    alone, together, once_more = (swept(bfloat16, change, threads=threads) for threads in (1, 2, 3))
    assert alone[KEY].wrong == len(PLACES)
    assert alone == together == once_more
