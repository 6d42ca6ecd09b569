"""What one phase hands to the next, and what an earlier run left in its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bot.action.state import FILE, Failure, StateStore
from bot.errors import Usage

LEFT = {
    "an earlier version's": json.dumps({"schema": 1, "jobs": [], "failure": None}),
    "no version's": "[]",
    "cut off by a full disk": '{"schema": 2, "jo',
    "empty": "",
    "not text": "\udcff",
}


@pytest.mark.parametrize("left", LEFT)
def test_a_kept_work_folder_is_no_obstacle_to_a_new_run(left: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(LEFT[left], errors="surrogateescape")
    store = StateStore.open(tmp_path, fresh=True)
    assert not store.state.jobs
    store.change(plan_only="a fork")
    assert StateStore.open(tmp_path, fresh=False).state.plan_only == "a fork"


@pytest.mark.parametrize("left", LEFT)
def test_within_a_run_it_is_said(left: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(LEFT[left], errors="surrogateescape")
    with pytest.raises(Usage, match=r"is of another version, or damaged\.") as raised:
        StateStore.open(tmp_path, fresh=False)
    assert raised.value.exit_code == 2


def test_a_new_run_forgets_the_failure_of_an_earlier_one_and_keeps_what_its_preflight_found(tmp_path: Path) -> None:
    store = StateStore.open(tmp_path, fresh=True)
    store.change(reach={"demo/target": Failure(exit_code=5, sentences=(("No.", "Do."),))})
    assert StateStore.open(tmp_path, fresh=True).state.reach
    store.change(failure=Failure(exit_code=5, sentences=(("No.", "Do."),)))
    assert StateStore.open(tmp_path, fresh=True).state.failure is None
