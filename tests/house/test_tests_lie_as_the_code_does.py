"""A test is found where its code is: tests/ has a folder for each room of bot/, and a few for what goes through all of them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

KINDS = {
    "stories": "a whole command, against a local Hub",
    "oracle": "merges held to PEFT's unmerged model",
    "faults": "damage that the proof must find, and correct merges that it must pass",
    "house": "what the code and its contracts look like",
    "launcher": "bot/launch.sh and action.yml",
    "image": "the container image",
    "workflows": "workflows, examples and docs",
    "extensions": "what is installed beside it: the extension of hf, the skill for agents",
}


def folders(of: str) -> set[str]:
    """Every folder below bot/ or tests/ that holds Python files, as `checks/folder`."""
    return {path.parent.relative_to(ROOT / of).as_posix() for path in (ROOT / of).rglob("*.py")} - {"."}


def test_every_folder_of_tests_is_a_room_of_the_code_or_a_kind_that_has_a_name() -> None:
    assert folders("tests") - folders("bot") == KINDS.keys()
