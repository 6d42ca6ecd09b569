"""A file is hashed of what others read of it."""

from __future__ import annotations

import hashlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bot.checks.reading import digests
from bot.checks.reading.digests import FileDigest, Waiting
from bot.checks.reading.rows import Opened


@pytest.fixture
def content(tmp_path: Path) -> tuple[Path, bytes]:
    path = tmp_path / "some"
    path.write_bytes(written := random.Random(5).randbytes(300_000))
    return path, written


def ranges(seed: int, size: int) -> list[tuple[int, int]]:
    """Parts of a file in any order: with gaps between them, some twice, and some that reach into others."""
    chance = random.Random(seed)
    at, parts = 0, []
    while at < size:
        stop = min(size, at + chance.randint(1, size // 20))
        if chance.random() < 0.8:
            parts.append((max(0, at - chance.choice((0, 0, 0, 500))), stop))
        at = stop
    return chance.sample(parts + parts[:3], len(parts) + 3)


@pytest.mark.parametrize("held", [1 << 26, 20_000, 0])
@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_files_sha256_in_whatever_order_it_was_read(
    content: tuple[Path, bytes], seed: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "HELD", held)
    path, written = content
    digest = FileDigest(path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda part: digest.take(part[0], memoryview(written)[slice(*part)]), ranges(seed, len(written))))
    assert digest.finish() == hashlib.sha256(written).hexdigest()


def test_what_was_handed_over_is_not_read_again(content: tuple[Path, bytes]) -> None:
    path, written = content
    digest = FileDigest(path)
    for start in (200_000, 0, 100_000):
        digest.take(start, memoryview(written)[start : start + 100_000])
    path.write_bytes(bytes(len(written)))
    assert digest.finish() == hashlib.sha256(written).hexdigest()


def test_who_reads_faster_than_is_hashed_waits(content: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "HELD", 20_000)
    path, written = content
    digest = FileDigest(path)
    most, read_up_to = [0], digest._read_up_to

    def slowly(stop: int) -> None:
        most[0] = max(most[0], sum(map(len, list(digest._waiting.values()))))
        time.sleep(1e-4)
        read_up_to(stop)

    digest._read_up_to = slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor(8) as pool:  # the first thousand bytes nobody reads
        starts = range(1000, len(written), 1000)
        list(pool.map(lambda start: digest.take(start, memoryview(written)[start : start + 1000]), starts))
    assert digest.finish() == hashlib.sha256(written).hexdigest()
    assert 20_000 <= most[0] <= 20_000 + 8 * 1000


def test_files_that_are_read_together_share_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twenty files the ends are read first: what waits for their beginnings is no more than of one."""
    monkeypatch.setattr(digests, "HELD", 50_000)
    together, most = Waiting(), []
    add = together.add

    def counting(count: int) -> None:
        add(count)
        most.append(together._held)

    monkeypatch.setattr(together, "add", counting)
    paths = [tmp_path / str(number) for number in range(20)]
    for path in paths:
        path.write_bytes(random.Random(path.name).randbytes(40_000))
    hashes = {path: FileDigest(path, together) for path in paths}
    for start in (30_000, 20_000, 10_000):
        for path, digest in hashes.items():
            digest.take(start, memoryview(path.read_bytes()[start : start + 10_000]))
    assert max(most) <= 60_000
    assert [digest.finish() for digest in hashes.values()] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    ]
    assert together._held == 0


def test_nobody_waits_for_a_hash_that_has_failed(content: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "HELD", 2000)
    path, written = content
    digest = FileDigest(path)
    path.write_bytes(b"short")

    def take(start: int) -> str:
        try:
            digest.take(start, memoryview(written)[start : start + 1000])
        except EOFError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(4) as pool:
        assert "some ended at byte 5" in list(pool.map(take, range(1000, 100_000, 1000)))


def test_a_reader_hands_over_what_it_reads(content: tuple[Path, bytes]) -> None:
    path, written = content
    digest = FileDigest(path)
    with Opened({path: digest}) as opened:
        opened.bytes(path, 0, 150_000)
        opened.bytes(path, 150_000, 150_000)
    path.write_bytes(bytes(len(written)))
    assert digest.finish() == hashlib.sha256(written).hexdigest()


def test_a_file_that_has_become_shorter_is_told(content: tuple[Path, bytes]) -> None:
    path, _ = content
    digest = FileDigest(path)
    path.write_bytes(b"short")
    with pytest.raises(EOFError, match="ended at byte 5"):
        digest.finish()
