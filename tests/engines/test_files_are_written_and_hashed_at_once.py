"""An output file that several threads write in any order: its bytes, its sha256, and the blocks it shares with its source."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bot.engines import files
from bot.engines.files import Output, opened, reserve
from bot.engines.schedule import computed_ranges, cut_run
from bot.records import Copy, Stored
from tests.factory import save_adapter, save_base
from tests.steps import merge_folders, plan_folders

SIZE = 200_000


@pytest.fixture
def output(tmp_path: Path) -> Iterator[tuple[Output, Path]]:
    with opened(tmp_path / "out", os.O_RDWR | os.O_CREAT) as descriptor:
        yield Output(descriptor, SIZE), tmp_path / "out"


def filled(out: Output, content: bytes) -> bytearray:
    buffer = out.buffer(len(content))
    buffer[: len(content)] = content
    return buffer


@pytest.mark.parametrize("held", [0, 1000, 1 << 20])
@pytest.mark.parametrize("seed", range(5))
def test_the_hash_is_the_files_in_whatever_order_threads_write(
    output, held: int, seed: int, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(files, "HELD", held)
    monkeypatch.setattr(files, "HASHED", 700)
    out, path = output
    dice = random.Random(seed)
    content = dice.randbytes(SIZE)
    (tmp_path / "source").write_bytes(content)
    edges = [0, *sorted(dice.sample(range(1, SIZE), 300)), SIZE]
    ranges = [*pairwise(edges), *((at, at) for at in edges)]
    dice.shuffle(ranges)
    with opened(tmp_path / "source", os.O_RDONLY) as source, ThreadPoolExecutor(4) as pool:

        def write(at: int, stop: int) -> None:
            match at % 3:
                case 0:
                    out.put(filled(out, content[at:stop]), stop - at, at)
                case 1:
                    out.copy(source, at, at, stop - at)
                case 2:
                    out.write(content[at:stop], at)
                    out.mark_final(at, stop)

        list(pool.map(lambda given: write(*given), ranges))
        assert out.digest() == hashlib.sha256(content).hexdigest()
    assert path.read_bytes() == content


def test_buffers_are_used_again_however_far_the_hash_is_behind(output, monkeypatch) -> None:
    monkeypatch.setattr(files, "HELD", 16_500)
    out, _ = output
    seen = []
    for at in range(1000, SIZE, 1000):  # the first thousand bytes are missing
        seen.append(filled(out, bytes(1000)))
        out.put(seen[-1], 1000, at)
    assert len({id(buffer) for buffer in seen}) == 17
    out.put(filled(out, bytes(1000)), 1000, 0)
    assert out.digest() == hashlib.sha256(bytes(SIZE)).hexdigest()


def test_an_output_that_is_given_up_hashes_no_more(output) -> None:
    out, _ = output
    out.put(filled(out, bytes(1000)), 1000, 0)
    out.stop()
    out.put(filled(out, bytes(SIZE)), SIZE - 1000, 1000)
    with pytest.raises(RuntimeError, match="bytes 1000 and on"):
        out.digest()


def test_a_file_with_a_hole_has_no_hash(output) -> None:
    out, _ = output
    out.put(filled(out, bytes(1000)), 1000, 0)
    out.put(filled(out, bytes(1000)), 1000, 2000)
    with pytest.raises(RuntimeError, match="bytes 1000 and on were never written"):
        out.digest()


@pytest.mark.parametrize(("start", "position", "length"), [(100, 100, 10_000_000), (0, 4 << 20, 4 << 20), (7, 9, 1)])
def test_a_copy_is_cut_where_the_targets_blocks_end(start: int, position: int, length: int) -> None:
    source = Stored(key="k", file="f", dtype="U8", shape=(length,), start=start, stop=start + length)
    pieces = list(cut_run(source, start, position, length))
    assert [piece.start for piece in pieces][1:] == [piece.start + piece.length for piece in pieces][:-1]
    assert all(piece.start % files.COPY_RUN == 0 for piece in pieces[1:])
    assert all(piece.first - piece.start == start - position for piece in pieces)
    assert (pieces[0].start, sum(piece.length for piece in pieces)) == (position, length)


def test_what_is_computed_is_reserved_and_what_is_copied_is_not(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    plan = plan_folders(base, save_adapter(base, "llama", tmp_path / "adapter", target_modules=["q_proj", "o_proj"]))
    (shard,) = plan.shards
    computed = list(computed_ranges(plan.ops))
    copied = [(op.target.start, op.target.stop) for op in plan.ops if isinstance(op, Copy)]
    ranges = sorted([(0, len(shard.header)), *computed, *copied])
    assert [start for start, _ in ranges][1:] == [stop for _, stop in ranges][:-1]
    assert ranges[-1][1] == shard.size
    assert 0 < len(computed) < len(plan.ops) - len(copied), "no neighbours were joined"


def test_reserved_blocks_are_the_files_and_it_reads_as_zeros(tmp_path: Path) -> None:
    with opened(tmp_path / "out", os.O_RDWR | os.O_CREAT) as descriptor:
        os.truncate(descriptor, 1 << 20)
        reserve(descriptor, 1 << 18, 1 << 19)
        status = os.fstat(descriptor)
        assert status.st_size == 1 << 20
        assert 1 << 19 <= status.st_blocks * 512 < 1 << 20
    assert (tmp_path / "out").read_bytes() == bytes(1 << 20)


def test_where_nothing_can_be_reserved_nothing_happens() -> None:
    with opened(Path("/dev/null"), os.O_RDWR) as descriptor:
        reserve(descriptor, 0, 1 << 20)


@pytest.fixture
def sharing_disk(tmp_path: Path) -> Iterator[Path]:
    """An xfs of 400 MB, where files can share blocks."""
    disk, image = tmp_path / "disk", tmp_path / "image"
    disk.mkdir()
    with image.open("wb") as opened_image:
        opened_image.truncate(400 << 20)
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("no mkfs.xfs here")
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no xfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_untouched_ranges_share_the_bases_blocks_where_the_filesystem_can(sharing_disk: Path, tmp_path: Path) -> None:
    made = save_base("llama", tmp_path / "base")
    weights = load_file(made / "model.safetensors") | {"model.layers.0.padding": torch.randn(16 << 20)}
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    adapter = save_adapter(made, "llama", tmp_path / "adapter")
    base = Path(shutil.copytree(made, sharing_disk / "base"))
    os.sync()
    before = shutil.disk_usage(sharing_disk).used
    merged = merge_folders(base, adapter, sharing_disk / "merged")
    os.sync()
    size = (merged / "model.safetensors").stat().st_size
    assert size > 64 << 20
    assert shutil.disk_usage(sharing_disk).used - before < size // 4
