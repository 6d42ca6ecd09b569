"""Which adapters a run of merge.yml merges, each in a job of its own: those that were named, a collection's, or all of an author's for
one base. Runs before the merges on a plain Python: only a list that the Hub keeps needs the Hub's client."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bot.errors import Usage
from bot.hub import lazy_hub

if TYPE_CHECKING:
    from bot.hub import Hub

MOST = 256  # jobs of one matrix, as GitHub has it
Merge = dict[str, str]  # of one job: the action's inputs that differ from job to job


def write_merges(env: Mapping[str, str], tell: Callable[[str], None]) -> None:
    """The list as the step's output `merges`. `tell` hears what was left out. Raises Usage where there is none, or too many."""
    merges = merges_of(env, lazy_hub(_hub), tell)
    with Path(env["GITHUB_OUTPUT"]).open("a", encoding="utf-8") as output:
        output.write(f"merges={json.dumps(merges)}\n")  # on one line, whatever it holds
    tell(f"{len(merges)} adapters, each in a job of its own: {', '.join(merge['adapter'] for merge in merges)}")


def _hub() -> Hub:
    from bot.hub import Hub

    return Hub()


def merges_of(env: Mapping[str, str], hub: Hub, tell: Callable[[str], None]) -> list[Merge]:
    """One merge for each adapter, in order, none twice."""
    entries = _entries(env, "INPUT_ADAPTER")
    settings = {name: _entries(env, variable) for name, variable in EACH.items()}
    lists = [entry for entry in entries if _is_list(entry)]
    for name, values in settings.items():
        if values and lists:
            raise Usage(f"{name} is given, and {lists[0]} is a list.", remedy=f"Leave {name} empty.")
        if values and len(values) != len(entries):
            raise Usage(
                f"{name} has {len(values)} entries for {len(entries)} adapter(s).",
                remedy="Give one for each adapter, in their order, or leave it empty.",
            )
    merges: dict[str, Merge] = {}
    for index, entry in enumerate(entries):
        more = {name: values[index] for name, values in settings.items() if values}
        for adapter in _adapters(entry, env, hub, tell):
            merge = {"adapter": adapter, **more}
            merges.setdefault(json.dumps(merge), merge)
    if not merges:
        raise Usage("There is no adapter to merge.", remedy="Name one, or a list that holds one.")
    if len(merges) > MOST:
        raise Usage(
            f"These are {len(merges)} adapters, and a run on GitHub has {MOST} jobs at most.",
            remedy="Start several runs, each with a part of them.",
        )
    return list(merges.values())


EACH = {"adapter-revision": "INPUT_ADAPTER_REVISION", "target-repo": "INPUT_TARGET_REPO"}


def _entries(env: Mapping[str, str], variable: str) -> list[str]:
    return [entry.strip() for entry in re.split(r"[,\n]", env.get(variable, "")) if entry.strip()]


def _is_list(entry: str) -> bool:
    return entry.startswith(("collection:", "base:"))


def _adapters(entry: str, env: Mapping[str, str], hub: Hub, tell: Callable[[str], None]) -> Iterable[str]:
    """The adapters that an entry stands for."""
    kind, _, name = entry.partition(":")
    if not _is_list(entry):
        return (entry,)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise Usage(f"{entry} names nothing on the Hub.", remedy=f"Write {kind}:owner/name.")
    if kind == "collection":
        models = hub.collection(name)
        _require_few(entry, models)
        adapters = tuple(model for model in models if hub.is_adapter(model))
        if left_out := [model for model in models if model not in adapters]:
            tell(f"Left out of {entry}, as they hold no adapter: {', '.join(left_out)}")
    else:
        author = env.get("INPUT_AUTHOR", "").strip() or env.get("GITHUB_REPOSITORY_OWNER", "")
        if not author:
            raise Usage(f"{entry} needs to know whose adapters.", remedy="Name their owner on the Hub with author.")
        adapters = hub.adapters_for(name, author)
    if not adapters:
        whose = "" if kind == "collection" else f" of {author}'s"
        raise Usage(
            f"{entry} names no adapter{whose} that this token sees.",
            remedy="Check its name, and for base: the author; each adapter's card says base_model.",
        )
    _require_few(entry, adapters)
    return adapters


def _require_few(entry: str, names: tuple[str, ...]) -> None:
    if len(names) > MOST:
        raise Usage(
            f"{entry} names {len(names)} models, and a run on GitHub has {MOST} jobs at most.",
            remedy="Name a part of them.",
        )
