"""doctor: what this machine, these tokens and the target allow, before any download. It asks, and changes nothing."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from bot.errors import Forbidden, NotFound, Outside, Usage
from bot.hub import Hub, Unserved, is_repo_id
from bot.hub.sentences import BAD_TOKEN
from bot.project import REPOSITORY
from bot.records import Machine

GB = 1_000_000_000
LITTLE_DISK = 20 * GB  # a 7-billion model in bfloat16 takes 14 to download and 14 to write
LITTLE_MEMORY = 2 * GB  # the streaming engine's working set, with room for Python and torch
NEEDED = ("torch", "transformers", "peft", "safetensors", "huggingface_hub")


class Line(NamedTuple):
    """One thing looked at. `remedy` is empty where nothing needs to be done."""

    topic: str
    status: Literal["ok", "warn", "fail"]
    sentence: str
    remedy: str = ""


def examine(target: str | None, hub: Hub, machine: Machine) -> list[Line]:
    """Everything that can be known beforehand, in the order in which a run would meet it."""
    lines = list(_machine(machine))
    lines.append(_cache(hub))
    reachable = _reach(hub)
    lines.append(reachable)
    if reachable.status != "fail":
        lines.append(_token(hub))
        if target is not None:
            lines.append(_target(target, hub))
    return lines


def _machine(machine: Machine) -> Iterator[Line]:
    missing = [name for name in NEEDED if not machine.versions.get(name)]
    shown = ", ".join(f"{name} {version}" for name, version in machine.versions.items() if version)
    if missing:
        remedy = f"Install adapter-merge again, with its dependencies: `pip install .` in a clone of {REPOSITORY}."
        yield Line("versions", "fail", f"Not installed: {', '.join(missing)}.", remedy)
    else:
        yield Line("versions", "ok", f"{machine.platform}; {shown}.")
    yield _amount("disk", machine.disk_free, LITTLE_DISK, "free", "Free some space, or write to a larger disk.")
    available = machine.memory_available
    yield _amount("memory", available, LITTLE_MEMORY, "available", "Close other programs, or take a larger machine.")
    yield Line("gpu", "ok", f"GPU: {_gpus(machine)}.")
    loops = ("bot.numerics._exact", "bot.checks.elementwise._rederive", "bot.checks.elementwise._at_random")
    if all(map(importlib.util.find_spec, loops)):
        yield Line("compiled", "ok", "The inner loops of the merge and of its proof are compiled.")
    else:
        remedy = "Install a C compiler, then adapter-merge again (`pip install --force-reinstall --no-deps .` in its clone); "
        remedy += "or let it be: the bytes are the same."
        what = (
            "Not every inner loop is compiled: a merge takes about twice as long, and the proof of its weights longer."
        )
        yield Line("compiled", "warn", what, remedy)


def _gpus(machine: Machine) -> str:
    if not machine.gpus:
        return "none; a merge does not need one, and gives the same bytes without"
    named = ", ".join(gpu.name + (f" ({gpu.free / GB:.1f} GB free)" if gpu.free else "") for gpu in machine.gpus)
    if not machine.cuda:
        return f"{named}; the installed torch is not built for it, so that merges and proofs run on the CPU, to the same bytes"
    return f"{named}; the full proof runs the models there, where they fit"


def _amount(topic: str, amount: int, little: int, word: str, remedy: str) -> Line:
    sentence = f"{amount / GB:.1f} GB of {topic} {word}"
    if amount < little:
        return Line(topic, "warn", f"{sentence}: enough for small models only; `plan` says what a merge takes.", remedy)
    return Line(topic, "ok", f"{sentence}.")


def _cache(hub: Hub) -> Line:
    folder: Path = hub.cache_dir
    while not folder.exists():
        folder = folder.parent
    if os.access(folder, os.W_OK):
        return Line("cache", "ok", f"Downloads are kept in {hub.cache_dir}.")
    remedy = "Point HF_HOME at a folder that this user may write."
    return Line("cache", "fail", f"The download cache {hub.cache_dir} cannot be written.", remedy)


def _reach(hub: Hub) -> Line:
    try:
        hub.reach()
    except Unserved:
        sentence = f"{hub.address} answers, but lists no models: it is a mirror of the Hub, or no Hub."
        return Line(
            "hub", "warn", sentence, "Reading may work all the same; to publish, set HF_ENDPOINT to the Hub itself."
        )
    except Outside as error:
        return Line("hub", "fail", error.what, error.remedy)
    return Line("hub", "ok", f"{hub.address} answers.")


def _token(hub: Hub) -> Line:
    try:
        if not hub.signed_in(hub.outputs):
            remedy = "Set HF_TOKEN, or run `hf auth login`, to read private or gated repos and to publish."
            return Line("token", "warn", "There is no token: only public inputs can be read.", remedy)
        who = hub.whoami()
    except Outside as error:
        # Of a token that is refused this question alone, the lines about the target say the rest.
        untold = isinstance(error, Unserved | Forbidden | NotFound) and error.code != BAD_TOKEN
        return Line("token", "warn" if untold else "fail", error.what, error.remedy)
    scope = f", limited to {'; '.join(who.scopes)}" if who.scopes else ""
    sentence = f"The token is {who.name}'s, of role {who.role}{scope}."
    if who.role == "read":
        return Line("token", "warn", sentence, "Use a token of role write to publish.")
    return Line("token", "ok", sentence)


def _target(target: str, hub: Hub) -> Line:
    if not is_repo_id(target) or "/" not in target:
        return Line("target", "fail", f"{target!r} is not a Hub repo.", "Name the target as owner/name.")
    try:
        existing = hub.target(target)
        if existing is None:
            return _missing_target(target, hub)
        # By its name of today, which is what a fine-grained token's permissions name.
        refused = _refusal(lambda: hub.require_write(existing.repo))
        closed = _refusal(lambda: hub.require_pulls(existing.repo))
    except (Outside, Usage) as error:
        return Line("target", "fail", error.what, error.remedy)
    seen = "private" if existing.private else "public"
    if refused and closed:
        return Line("target", "fail", f"{refused.what} {closed.what}", refused.remedy)
    if refused:
        return Line(
            "target", "warn", refused.what, f"A pull request is possible (--publish pr). To push: {refused.remedy}"
        )
    if closed:
        sentence = f"{target} exists ({seen}), and the token may write to it, but open no pull request. {closed.what}"
        return Line("target", "warn", sentence, closed.remedy)
    return Line("target", "ok", f"{target} exists ({seen}), and the token may write to it.")


def _refusal(look: Callable[[], None]) -> Forbidden | None:
    try:
        look()
    except Forbidden as refused:
        return refused
    return None


def _missing_target(target: str, hub: Hub) -> Line:
    if not hub.signed_in(hub.outputs):
        remedy = "Set HF_TOKEN to a token that may create it."
        return Line("target", "fail", f"{target} does not exist, or is private.", remedy)
    try:
        hub.require_create(target)
    except Outside as error:
        return Line("target", "fail", error.what, error.remedy)
    return Line("target", "ok", f"{target} does not exist yet; it would be created.")
