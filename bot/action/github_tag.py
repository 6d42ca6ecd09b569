"""What a GitHub tag means for an adapter on the Hub. The rule is written down in docs/tag-push.md, and decided here.

Where no revision is asked for and a tag started the run: the Hub tag of that very name; else the tag's version part, where
the adapter has a tag called like that (`adapter-v1.0`: `v1.0` or `1.0`); else main, with a notice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from bot.errors import Forbidden, Gated, Outside
from bot.events import Emit, Note
from bot.hub import Hub
from bot.hub.errors import HubBusy
from bot.records import Ref

SEPARATOR = r"[-/@_]"
VERSION = re.compile(r"v?\d")
WITH_V = re.compile(r"v\d")
DOTTED = re.compile(r"v\d|\d+\.\d")  # what nobody takes for a part of a name


def at_pushed_tag(ref: Ref, tag: str | None, hub: Hub, emit: Emit) -> Ref:
    """The adapter at the revision that the pushed `tag` means; as it is where it names one, or where no tag was pushed."""
    if tag is None or ref.repo is None or ref.revision is not None:
        return ref
    known = next(filter(_known(ref.repo, hub), candidates(tag)), None)
    if known is None:
        text = f"{ref.repo} has no tag {tag} and none of its version, so that its main branch is merged."
        emit(Note(text=f"{text} adapter-revision can name another revision.", level="notice"))
        return ref
    if known != tag:
        emit(Note(text=f"The pushed tag {tag} means the tag {known} of {ref.repo}.", level="notice"))
    return replace(ref, revision=known, text=f"{'/'.join(filter(None, (ref.repo, ref.subfolder)))}@{known}")


def candidates(tag: str) -> tuple[str, ...]:
    """The names that a pushed tag may have on the Hub, the closest first.

    A version part begins behind a `-`, `/`, `@` or `_`, and never in the middle of another: `v1.0-2` is no 2, and neither is
    `v1.0-rc-2`.
    """
    names = [tag]
    for cut in re.finditer(SEPARATOR, tag):
        part = tag[cut.end() :]
        if _begins(part, re.split(SEPARATOR, tag[: cut.start()])):
            names.append(part)
    versions = [name for name in names if VERSION.match(name)]
    names += [name.removeprefix("v") if name.startswith("v") else f"v{name}" for name in versions]
    return tuple(dict.fromkeys(names))


def _begins(part: str, earlier: list[str]) -> bool:
    """Whether a version begins with `part`. What may belong to a version among the `earlier` parts does not count as its name."""
    if WITH_V.match(part):  # llama-3.1-v2: the 3.1 is llama's
        return not DOTTED.match(earlier[0]) and not any(map(WITH_V.match, earlier))
    if not VERSION.match(part) or any(map(DOTTED.match, earlier)):
        return False
    # 2024-01-05 is a date, and adapter-3-epoch-2 the 3; but llama-3-8b-1.2 is the 1.2
    return not any(name.isdigit() for name in (earlier[-1:] if DOTTED.match(part) else earlier))


def _known(repo: str, hub: Hub) -> Callable[[str], bool]:
    """Whether the adapter has a tag. A Hub that does not list tags (some companies' proxies) is asked for each."""
    try:
        tags = hub.tags_of(repo)
    except (HubBusy, Gated, Forbidden):
        raise
    except Outside:
        hub.pin(repo)  # says so where it is the repo that is missing
        return lambda name: _is_there(repo, name, hub)
    return lambda name: name in tags


def _is_there(repo: str, name: str, hub: Hub) -> bool:
    try:
        hub.pin(repo, name)
    except Outside:
        return False
    return True
