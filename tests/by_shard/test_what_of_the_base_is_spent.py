"""Which bytes of a base file are given back to the disk while a weight file is made from it, and that nobody reads them again."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bot.by_shard.spent import Spent, gives_back
from bot.engines.files import OpenInputs
from bot.records import AddDelta, Factor, Header, Local, Patch, Shard, Stored
from bot.shard_needs import ShardNeeds, Use, shard_needs

FILE = "base.safetensors"
BLOCK = 4096


def needs(size: int, *uses: Use) -> ShardNeeds:
    shard = Shard(name=FILE, size=size, header=b"", same_as_base=False)
    return ShardNeeds(shard=shard, whole=((FILE, size),), spans=(), uses=uses)


def use(source: tuple[int, int], target: tuple[int, int], *, by_rows: bool = True) -> Use:
    return Use(file=FILE, source=source, target=target, by_rows=by_rows)


def test_rows_are_spent_as_they_are_made_and_norms_of_columns_when_all_of_them_are() -> None:
    spent = Spent(needs(310, use((10, 110), (10, 110)), use((110, 310), (110, 310), by_rows=False)), frozenset())
    assert spent.up_to(10) == {}
    assert spent.up_to(60) == {FILE: [(10, 60)]}
    assert spent.up_to(60) == {}
    assert spent.up_to(309) == {FILE: [(60, 110)]}
    assert spent.up_to(310) == {FILE: [(110, 310)]}


@pytest.mark.parametrize(("along", "by_rows"), [("rows", True), ("columns", False)])
def test_a_norm_of_columns_needs_every_row_of_its_source(along: Any, by_rows: bool) -> None:
    whole = Stored(key="w", file=FILE, dtype="F32", shape=(2, 2), start=8, stop=24)
    magnitude = Factor(
        stored=replace(whole, key="m", role="adapter"), rows=(0, 2, 1), columns=(0, 1, 1), transposed=False
    )
    patch = Patch(rows=(0, 2), columns=(0, 2), terms=(), magnitude=magnitude, along=along)
    op = AddDelta(source=whole, target=whole, view=(2, 2), patches=(patch,))
    header = Header(file=FILE, file_size=24, tensors=(whole,), metadata={}, raw=b"")
    (made,) = shard_needs([op], [Shard(name=FILE, size=24, header=b"", same_as_base=False)], [header])
    assert {use.by_rows for use in made.uses if use.source == (8, 24)} == {by_rows}


def test_a_cast_spends_its_source_in_proportion() -> None:
    spent = Spent(needs(210, use((10, 110), (10, 210))), frozenset())
    assert spent.up_to(110) == {FILE: [(10, 60)]}


def test_what_two_tensors_are_made_from_is_spent_with_the_last_of_them() -> None:
    spent = Spent(needs(200, use((0, 100), (0, 100)), use((0, 100), (100, 200))), frozenset())
    assert spent.up_to(150) == {FILE: [(0, 50)]}
    assert spent.up_to(200) == {FILE: [(50, 100)]}


def test_neighbours_are_one_range_and_a_file_that_lies_here_anyway_is_left_alone() -> None:
    some = needs(200, use((0, 100), (0, 100)), use((100, 200), (100, 200)))
    assert Spent(some, frozenset()).up_to(200) == {FILE: [(0, 200)]}
    assert Spent(some, frozenset({FILE})).up_to(200) == {}
    assert Spent(some, frozenset({FILE})).most_beside(10) == 200


@pytest.mark.parametrize("seed", range(40))
def test_the_room_that_is_asked_for_is_what_it_comes_to(seed: int) -> None:
    dice = random.Random(seed)
    lengths = [dice.randint(1, 60) for _ in range(dice.randint(1, 9))]
    starts = [sum(lengths[:at]) for at in range(len(lengths))]
    places = [(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    uses = [use(place, place, by_rows=dice.random() < 0.6) for place in places]
    uses += [use(dice.choice(places), dice.choice(places), by_rows=False) for _ in range(dice.randint(0, 2))]
    size, lag = sum(lengths), dice.randint(0, 20)
    spent, gone, most = Spent(needs(size, *uses), frozenset()), 0, 0
    for done in range(size + 1):
        gone += sum(high - low for ranges in spent.up_to(done).values() for low, high in ranges)
        # Written is up to `lag` more than is compared and given back.
        most = max(most, min(size, done + lag) - gone)
    assert gone == size
    asked = Spent(needs(size, *uses), frozenset()).most_beside(lag)
    assert most <= asked
    assert asked <= most + lag + 1 or len(uses) > len(places), (
        "a tensor that two are made from is counted as if it came last"
    )


@pytest.fixture
def inputs(tmp_path: Path) -> Local:
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / FILE).write_bytes(os.urandom(64 * BLOCK))
    return Local(base=tmp_path / "base", adapter=tmp_path / "adapter", files=())


def stored(start: int, stop: int) -> Stored:
    return Stored(key="w", file=FILE, dtype="U8", shape=(stop - start,), start=start, stop=stop)


def test_the_disk_gets_the_range_back_and_every_other_byte_stays(inputs: Local) -> None:
    path = inputs.base / FILE
    before, room = path.read_bytes(), path.stat().st_blocks
    assert gives_back(inputs.base), "this filesystem takes nothing back: the test says nothing"
    with OpenInputs(inputs) as files:
        files.give_back("base", FILE, [(10, 20 * BLOCK), (20 * BLOCK, 30 * BLOCK + 1), (50 * BLOCK, 60 * BLOCK)])
        files.unchanged()
        files.read(stored(0, 10), 0, memoryview(bytearray(10)))
        for start, stop in ((0, 11), (30 * BLOCK, 30 * BLOCK + 2), (55 * BLOCK, 64 * BLOCK)):
            with pytest.raises(RuntimeError, match="given back"):
                files.read(stored(start, stop), 0, memoryview(bytearray(stop - start)))
    after = path.read_bytes()
    assert path.stat().st_blocks <= room - (29 + 9) * BLOCK // 512
    assert after[:10] == before[:10]
    assert not any(after[10 : 30 * BLOCK + 1])
    assert after[30 * BLOCK + 1 : 50 * BLOCK] == before[30 * BLOCK + 1 : 50 * BLOCK]
    assert after[60 * BLOCK :] == before[60 * BLOCK :]


def test_a_file_that_somebody_else_writes_to_is_noticed_before_and_after(inputs: Local) -> None:
    from bot.errors import Refused

    with OpenInputs(inputs) as files:
        files.give_back("base", FILE, [(0, BLOCK)])
        with (inputs.base / FILE).open("r+b") as opened:
            opened.write(b"x")
        with pytest.raises(Refused, match="changed while it was read"):
            files.give_back("base", FILE, [(BLOCK, 2 * BLOCK)])
        with pytest.raises(Refused, match="changed while it was read"):
            files.unchanged()


def test_nothing_is_taken_from_a_file_that_is_only_linked_to(inputs: Local, tmp_path: Path) -> None:
    ours, theirs = inputs.base / FILE, tmp_path / "theirs"
    content = ours.read_bytes()
    ours.rename(theirs)
    ours.symlink_to(theirs)
    with OpenInputs(inputs) as files, pytest.raises(OSError, match="symbolic"):
        files.give_back("base", FILE, [(0, 64 * BLOCK)])
    assert theirs.read_bytes() == content
    ours.unlink()
    os.link(theirs, ours)
    with OpenInputs(inputs) as files, pytest.raises(OSError, match="more than one name"):
        files.give_back("base", FILE, [(0, 64 * BLOCK)])
    assert theirs.read_bytes() == content
