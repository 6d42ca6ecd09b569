"""Suggestions for a name that was not found: the repo's tags and branches, similar models. Asked once, for the error's remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from bot.errors import AdapterMergeError, Outside
from bot.hub.connection import Connection
from bot.hub.errors import plain, translate_errors
from bot.hub.names import counted

SHOWN = 8  # tags and branches; of models, three
LISTED = 300  # models of an owner that are looked through
ALIKE = 0.6  # of names of one owner; across owners, where a likeness may be a trap, it takes more
ALIKE_ELSEWHERE = 0.8


def advise(connection: Connection, missing: Outside, repo: str, revision: str | None) -> None:
    """Add the names that there are to a failure's remedy. Where the Hub lists none, the failure stays as it is."""
    try:
        if isinstance(missing.__cause__, RevisionNotFoundError):
            missing.remedy += _revisions(connection, repo, revision or "main")
        elif isinstance(missing.__cause__, RepositoryNotFoundError) and "/" in repo:
            missing.remedy = _models(connection, repo) + missing.remedy
    except AdapterMergeError:
        return


def _revisions(connection: Connection, repo: str, wanted: str) -> str:
    with translate_errors(connection.where(f"list the tags of {repo}", repo)):
        refs = connection.inputs.list_repo_refs(repo)
    kinds = (("tag", [tag.name for tag in refs.tags]), ("branch", [branch.name for branch in refs.branches]))
    listed = [f"the {_plural(kind, names)} {_first_names(names, wanted)}" for kind, names in kinds if names]
    return f" It has {' and '.join(listed)}." if listed else ""


def _plural(kind: str, names: list[str]) -> str:
    return kind if len(names) == 1 else {"tag": "tags", "branch": "branches"}[kind]


def _first_names(names: list[str], wanted: str) -> str:
    """Those that are spelled alike first, then the highest numbers."""
    alike = get_close_matches(wanted, names, 3)
    others = sorted((name for name in names if name not in alike), key=counted, reverse=True)
    ordered = [*alike, *others]
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return plain(", ".join(ordered[:SHOWN]), 300) + more


def _models(connection: Connection, repo: str) -> str:
    owner, _, name = repo.partition("/")
    with translate_errors(connection.where(f"list the models of {owner}")):
        listed = _ids(connection.inputs.list_models(author=owner, limit=LISTED))
        own = {model.rpartition("/")[2]: model for model in listed}
        near = [own[short] for short in _alike(name, own, ALIKE)]
        if not near:
            near = _alike(repo, _ids(connection.inputs.list_models(search=name, limit=LISTED)), ALIKE_ELSEWHERE)
    return f"Did you mean {plain(' or '.join(near), 300)}? " if near else ""


def _ids(models: Iterable[object]) -> list[str]:
    return [str(getattr(model, "id", "")) for model in islice(models, LISTED)]


def _alike(name: str, names: Iterable[str], cutoff: float) -> list[str]:
    """Up to three that are spelled alike, letters of either size."""
    known = {other.casefold(): other for other in names}
    return [known[other] for other in get_close_matches(name.casefold(), known, 3, cutoff)]
