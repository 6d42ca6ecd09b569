"""Hashes of large files are remembered, and never believed of a file that may have changed."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from bot.pull import hashes
from bot.pull.hashes import Hashes


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large, and that nobody has touched for a while."""
    monkeypatch.setattr(hashes, "LARGE", 10)
    monkeypatch.setattr(hashes, "SETTLED", -1.0)  # its state was changed just now, whatever we do
    path = tmp_path / "large"
    path.write_bytes(b"0123456789abcdef")
    return path


def ask(path: Path, memory: Path) -> tuple[str, bool]:
    """(sha256, whether a byte was read for it)."""
    asked = Hashes(memory)
    opened: list[Path] = []
    original = hashes._sha256

    def counting(path: Path, read) -> str:
        opened.append(path)
        return original(path, read)

    hashes._sha256 = counting
    try:
        found = asked.sha256(path, lambda amount: None)
    finally:
        hashes._sha256 = original
    asked.keep()
    return found, bool(opened)


def test_the_second_time_a_large_file_is_not_read(large: Path, tmp_path: Path) -> None:
    expected = hashlib.sha256(large.read_bytes()).hexdigest()
    assert ask(large, tmp_path / "memory.json") == (expected, True)
    assert ask(large, tmp_path / "memory.json") == (expected, False)


def test_a_changed_file_is_read_again_even_when_its_times_are_set_back(large: Path, tmp_path: Path) -> None:
    ask(large, tmp_path / "memory.json")
    before = large.stat()
    with large.open("r+b") as opened:
        opened.write(b"X")
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert large.stat().st_mtime_ns == before.st_mtime_ns
    assert ask(large, tmp_path / "memory.json") == (hashlib.sha256(large.read_bytes()).hexdigest(), True)


def test_a_file_that_has_just_changed_is_not_remembered(large: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hashes, "SETTLED", 2.0)
    assert time.time() - large.stat().st_ctime < 2
    ask(large, tmp_path / "memory.json")
    assert ask(large, tmp_path / "memory.json")[1]


def test_a_damaged_memory_is_no_memory(large: Path, tmp_path: Path) -> None:
    (tmp_path / "memory.json").write_text("{not json")
    assert ask(large, tmp_path / "memory.json")[1]
    assert not ask(large, tmp_path / "memory.json")[1]


def test_without_a_memory_every_byte_is_read(large: Path) -> None:
    asked = Hashes(None)
    assert asked.sha256(large, lambda amount: None) == hashlib.sha256(large.read_bytes()).hexdigest()
    asked.keep()
    assert Hashes(None)._known == {}


@pytest.mark.parametrize(
    "environment",
    [{"HF_HOME": "/x/home"}, {"HF_HUB_CACHE": "/y/cache"}, {"HF_HOME": "", "XDG_CACHE_HOME": "/z"}, {"HF_HOME": ""}],
)
def test_our_scratch_folder_is_where_the_client_keeps_its_cache(environment: dict[str, str], tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "from huggingface_hub import constants; from pathlib import Path; from bot.hub.names import scratch_folder;"
        "print(Path(constants.HF_HUB_CACHE).resolve().parent / 'adapter-merge' == scratch_folder())"
    )
    environment = {name: value and f"{tmp_path}{value}" for name, value in environment.items()}
    own = {name: value for name, value in (os.environ | environment).items() if value or name not in environment}
    ran = subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "True"


@pytest.mark.parametrize("there", [True, False])
def test_where_nothing_may_be_made_beside_the_cache_ours_is_below_the_clients_home(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bot.hub.client import Hub
    from bot.hub.names import scratch_folder

    cache = tmp_path / "root's/cache"
    cache.mkdir(parents=True)
    if there:
        (cache.parent / "adapter-merge").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    beside, below = cache.parent / "adapter-merge", tmp_path / "home/adapter-merge"
    assert scratch_folder() == Hub(cache_dir=cache).scratch == beside
    may = os.access  # root may write anywhere, also in a test
    monkeypatch.setattr(os, "access", lambda path, mode: may(path, mode) and (mode == os.F_OK or path == cache))
    assert scratch_folder() == Hub(cache_dir=cache).scratch == below
