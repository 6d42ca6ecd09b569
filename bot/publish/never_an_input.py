"""The target is never an input: a merge pushed to its own base or adapter would take the place of their files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bot.errors import Usage
from bot.records import Json

if TYPE_CHECKING:
    from bot.hub import Hub


def require_not_an_input(target: str, inputs: Json, hub: Hub) -> None:
    """Raises Usage where the target is one of the inputs, however it is spelled and whatever it was called before.

    `inputs`: as verification.json names them, the base and the adapter or adapters, each with its `repo`.
    """
    named = [(role, repo) for role, repo in named_repos(inputs) if repo is not None]
    today = hub.target_name(target)
    names = {target.casefold(), (today or target).casefold()}
    for role, repo in named:
        # A repo that does not exist can be no input, so that their new names matter only where the target exists.
        if repo.casefold() in names or (today is not None and hub.spelled(repo, sure=True).casefold() in names):
            what = repo if repo.casefold() == target.casefold() else f"{repo}, which {target} is another name of"
            raise Usage(
                f"The target is the {role} of this merge ({what}), whose files the result would replace.",
                remedy="Name another target: a repo of its own for the merged model.",
            )


def named_repos(inputs: Json) -> Iterator[tuple[str, str | None]]:
    """(base or adapter, repo) of every input; None for a folder."""
    for role in ("base", "adapter", "adapters"):
        entries = inputs.get(role)
        for entry in entries if isinstance(entries, list) else [entries] if isinstance(entries, dict) else []:
            repo = entry.get("repo") if isinstance(entry, dict) else None
            yield role.removesuffix("s") if role == "adapters" else role, repo if isinstance(repo, str) else None
