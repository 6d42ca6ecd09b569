"""A weight file is made, compared and its base given back piece by piece; the bytes and the report are those of the whole."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot.by_shard import shard_run
from bot.by_shard.disk_room import DiskRoom
from bot.checks.elementwise import sweep
from bot.engines import schedule, streaming
from bot.engines.files import OpenInputs
from bot.errors import Outside
from bot.hub import Hub
from tests.factory import save_adapter, save_base, save_card, save_tokenizer
from tests.stories.conftest import Command, World, adapter_merge, name_base, tiny, world
from tests.stories.test_one_weight_file_after_the_other import BY_SHARD, report_of, weights_of

__all__ = ["adapter_merge", "tiny", "world"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora on every linear": ("llama", {}),
    "dora, whose norms are of the columns of a transposed weight": ("gpt2", {"use_dora": True}),
    "a head that follows its embedding": ("qwen2", {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
}  # fmt: skip


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pieces of some rows of a tiny tensor; how many bytes of the base were given back with each."""
    given: list[int] = []
    give_back = OpenInputs.give_back

    def noted(self: OpenInputs, role: Any, file: str, ranges: Any) -> None:
        given.append(sum(stop - start for start, stop in ranges))
        give_back(self, role, file, ranges)

    monkeypatch.setattr(OpenInputs, "give_back", noted)
    monkeypatch.setattr(streaming, "PIECE", 2048)
    monkeypatch.setattr(schedule, "BLOCK", 256)
    for name in ("AT_ONCE", "SPAN"):
        monkeypatch.setattr(sweep, name, 512)
    return given


@pytest.mark.parametrize("case", CASES)
def test_in_small_pieces_it_comes_to_the_same(
    world: World, adapter_merge: Command, tmp_path: Path, case: str, small_pieces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    architecture, options = CASES[case]
    base = save_base(architecture, tmp_path / "other", shard_size="60KB")
    save_card(save_tokenizer(base), license="mit")
    adapter = save_adapter(base, architecture, tmp_path / "lora", **options)
    name_base(adapter, "demo/other")
    for repo, folder in (("demo/other", base), ("demo/lora", adapter)):
        world.api.create_repo(repo)
        world.api.upload_folder(repo_id=repo, folder_path=folder)
    ran = adapter_merge("run", "demo/lora", *BY_SHARD)
    assert ran.code == 0, ran.err
    files = len(list(base.glob("*.safetensors")))
    assert len(small_pieces) > files, "given back once a file, or not at all"
    ran = adapter_merge("run", "demo/lora", "--to", "demo/whole", "--verify", "weights")
    assert ran.code == 0, ran.err
    assert weights_of(world, "demo/lora-merged") == weights_of(world, "demo/whole")
    assert report_of(world, "demo/lora-merged") == report_of(world, "demo/whole")


def test_where_the_disk_takes_nothing_back_it_comes_to_the_same(
    world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch, small_pieces: list[int]
) -> None:
    import bot.engines.files

    monkeypatch.setattr(bot.engines.files, "punch", lambda *_: False)
    assert adapter_merge("run", "demo/adapter", *BY_SHARD).code == 0
    assert not small_pieces
    assert adapter_merge("run", "demo/adapter", "--to", "demo/whole", "--verify", "weights").code == 0
    assert weights_of(world, "demo/adapter-merged") == weights_of(world, "demo/whole")


def test_a_base_in_the_cache_is_read_there_and_stays_whole(
    world: World, adapter_merge: Command, small_pieces: list[int]
) -> None:
    folder = Path(world.api.snapshot_download("demo/base", cache_dir=Hub().cache_dir))
    before = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    ran = adapter_merge("run", "demo/adapter", *BY_SHARD)
    assert ran.code == 0, ran.err
    assert {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} == before
    assert not small_pieces


def test_nothing_waits_for_room_that_a_failed_upload_never_gives(
    world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for three files only, and none given back, what is made has to wait for the one that is sent: and that fails."""

    def refuse(self: Hub, *_: Any, **__: Any) -> Any:
        wait_for(lambda: waiting, 60)
        raise Outside("Nothing can be sent.", remedy="Wait.")

    waiting: list[int] = []
    take, room = DiskRoom.take, shard_run.room

    def noted(self: DiskRoom, size: int) -> None:
        if size > self._free:
            waiting.append(size)
        take(self, size)

    monkeypatch.setattr(DiskRoom, "take", noted)
    monkeypatch.setattr(shard_run, "gives_back", lambda _: False)
    monkeypatch.setattr(
        shard_run, "room", lambda needs, here: room(needs, here) - max(need.shard.size for need in needs)
    )
    monkeypatch.setattr(Hub, "upload", refuse)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for ever"))
    signal.alarm(120)
    try:
        ran = adapter_merge("run", "demo/adapter", *BY_SHARD)
    finally:
        signal.alarm(0)
    assert waiting
    assert ran.code == 5, ran.err
    assert "Nothing can be sent." in ran.err


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
