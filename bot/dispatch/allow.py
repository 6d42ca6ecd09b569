"""Which adapters and which tags the bot acts on: patterns that a person wrote, matched against a whole name, never a part of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate

from bot.errors import Usage

# owner/name, either with * for any run of characters (none of them a slash).
REPOS = re.compile(r"[\w.*-]+/[\w.*-]+", re.ASCII)
# Names on the Hub are ASCII: others may have a lower case that is somebody else's name (the Kelvin sign's is k).
NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
EVERYBODY = "*/*"


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """`repos` and `tags` as patterns."""

    repos: tuple[str, ...]
    tags: tuple[str, ...] = ("*",)

    @classmethod
    def of(cls, repos: Iterable[str], tags: Iterable[str] = ()) -> Allowed:
        """Raises Usage for an empty list of repos, which would allow nobody, and for what is no pattern."""
        repos, tags = tuple(repos), tuple(tags) or ("*",)
        if not repos:
            raise Usage(
                "No adapter is allowed to start a merge.",
                remedy=f"Name them with --allow 'owner/*' or --allow owner/name; --allow '{EVERYBODY}' takes everybody's.",
            )
        for pattern in repos:
            if not REPOS.fullmatch(pattern):
                raise Usage(f"--allow {pattern!r} is no pattern for a repo.", remedy="Write owner/name or 'owner/*'.")
        if "" in tags:
            raise Usage("--tags has an empty pattern.", remedy="Write for instance --tags 'v*', or leave it out.")
        return cls(repos=repos, tags=tags)

    def repo(self, name: str) -> bool:
        """Whether events of this repo count. Case does not matter, as on the Hub; `*` stands for anything but a slash."""
        if not NAME.fullmatch(name):
            return False
        owner, _, rest = name.lower().partition("/")
        pairs = (pattern.lower().split("/") for pattern in self.repos)
        return any(_fits(owner, first) and _fits(rest, second) for first, second in pairs)

    def tag(self, name: str) -> bool:
        """Whether this tag counts. Case matters, as in git."""
        return any(_fits(name, pattern) for pattern in self.tags)


def _fits(name: str, pattern: str) -> bool:
    """fnmatch's patterns, for the whole of a name on one line."""
    return re.match(translate(pattern), name) is not None and "\n" not in name
