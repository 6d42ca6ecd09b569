"""The target is never an input: a merge pushed to its own base or adapter would take the place of their files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bot.errors import Usage

if TYPE_CHECKING:
    from bot.hub import Hub


def require_not_an_input(target: str, repos: Iterable[tuple[str, str | None]], hub: Hub) -> None:
    """Raises Usage where the target is one of the inputs, however it is spelled and whatever it was called before.

    `repos`: (base or adapter, repo) of every input; None for a folder.
    """
    named = [(role, repo) for role, repo in repos if repo is not None]
    today = hub.target_name(target)
    names = {target.casefold(), (today or target).casefold()}
    for role, repo in named:
        # A repo that does not exist can be no input, so that their new names matter only where the target exists.
        if repo.casefold() in names or (today is not None and hub.current_name(repo, sure=True).casefold() in names):
            what = repo if repo.casefold() == target.casefold() else f"{repo}, which {target} is another name of"
            raise Usage(
                f"The target is the {role} of this merge ({what}), whose files the result would replace.",
                remedy="Name another target: a repo of its own for the merged model.",
            )
