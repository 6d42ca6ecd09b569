"""The disk fills up in the middle: it says so, nothing is visible, and the next run goes on with what was sent."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from bot.by_shard.journal import Journal
from bot.engines import files
from bot.hub import Hub
from tests.stories.conftest import Command, World, adapter_merge, tiny, world
from tests.stories.test_one_weight_file_after_the_other import BY_SHARD, MERGED, report_of, weights_of

__all__ = ["adapter_merge", "tiny", "world"]

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_after(count: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """The same, until it has been called so often: then the disk is full."""
    left = [count]

    def refused(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise FULL
        return work(*given, **named)

    return refused


WHERE = {
    "while a file comes": (Hub, "download_apart", 3, "The disk is full: one weight file after the other needs"),
    "while a file is made": (files, "write_all", 12, "The disk is full: one weight file after the other needs"),
    "while it is noted what was sent": (
        Journal,
        "_write",
        2,
        "The disk is full: one weight file after the other needs",
    ),
}


@pytest.mark.parametrize("where", WHERE)
def test_it_is_said_and_the_next_run_goes_on(
    world: World, adapter_merge: Command, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, name, count, what = WHERE[where]
    with monkeypatch.context() as patched:
        patched.setattr(home, name, full_after(count, getattr(home, name)))
        ran = adapter_merge("run", "demo/adapter", *BY_SHARD)
    assert ran.code == 6, ran.err
    assert what in ran.err
    assert (
        "run it again: nothing is visible on the Hub, and the weight files that were sent are not made again" in ran.err
    )
    assert not any(file.startswith("model") for file in world.api.list_repo_files(MERGED))
    left = sum(path.stat().st_size for path in Hub().scratch.rglob("model-*") if path.name.endswith(".safetensors"))
    assert left < min(path.stat().st_size for path in world.base.glob("model-*")), "weight files were left behind"
    ran = adapter_merge("run", "demo/adapter", *BY_SHARD)
    assert ran.code == 0, ran.err
    assert "was made, proven and sent by an earlier run" in ran.err
    assert adapter_merge("run", "demo/adapter", "--to", "demo/whole", "--verify", "weights").code == 0
    assert weights_of(world, MERGED) == weights_of(world, "demo/whole")
    assert report_of(world) == report_of(world, "demo/whole")
