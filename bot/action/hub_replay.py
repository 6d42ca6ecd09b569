"""What the Hub answered about the inputs while they were fetched, recorded and replayed where there is no network and no token."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot.errors import Forbidden, NotFound, Outside
from bot.hub import Hub, Pinned, Who
from bot.publish.messages import trailer_in
from bot.records import FileEntry, Json

if TYPE_CHECKING:
    from bot.hub.pulls import Pull


@dataclass(kw_only=True)
class Memory:
    """Pins by `repo@revision`, and tags by `repo@sha`. `publisher` is the account of the write token."""

    pins: dict[str, Pinned] = field(default_factory=dict)
    tags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    publisher: str | None = None

    def to_json(self) -> Json:
        """For the state file."""
        pins = {key: asdict(pinned) for key, pinned in self.pins.items()}
        return {"pins": pins, "tags": self.tags, "publisher": self.publisher}

    @classmethod
    def from_json(cls, saved: Json) -> Memory:
        """Back from the state file."""
        pins = {key: _pinned(pinned) for key, pinned in saved["pins"].items()}
        tags = {key: tuple(names) for key, names in saved["tags"].items()}
        return cls(pins=pins, tags=tags, publisher=saved["publisher"])

    def privacy(self, repo: str) -> tuple[bool, str | None] | None:
        """(private, gated) of an input, as it was when it was pinned; None where the Hub did not say."""
        for pinned in self.pins.values():
            if pinned.repo == repo and pinned.online:
                return pinned.private, pinned.gated
        return None


def _pinned(saved: dict[str, Any]) -> Pinned:
    return Pinned(**saved | {"files": tuple(FileEntry(**entry) for entry in saved["files"])})


class RecordingHub(Hub):
    """The Hub of the fetch phase: the real one, with every pin recorded."""

    def __init__(self, memory: Memory, **connection: Any) -> None:
        super().__init__(**connection)
        self._memory = memory

    def pin(self, repo: str, revision: str | None = None) -> Pinned:
        """As ever."""
        pinned = super().pin(repo, revision)
        self._memory.pins[f"{repo}@{revision or ''}"] = pinned
        return pinned

    def tags_at(self, repo: str, sha: str) -> tuple[str, ...]:
        """As ever."""
        tags = super().tags_at(repo, sha)
        self._memory.tags[f"{repo}@{sha}"] = tags
        return tags

    def signed_in(self, api: Any) -> bool:
        """As ever; and to look through the pull requests of a known account takes no token."""
        return super().signed_in(api) or (api is self.outputs and self._memory.publisher is not None)

    def whoami(self) -> Who:
        """The account that will publish, whose pull requests are ours; this token is perhaps another's."""
        if self._memory.publisher is not None:
            return Who(name=self._memory.publisher, role="unknown", orgs=(), scopes=())
        return super().whoami()


class ReplayHub(Hub):
    """The Hub of the merge phase: what was written down, and the files of the cache. It asks nobody."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(read_token=False, write_token=False)
        self._memory = memory

    def pin(self, repo: str, revision: str | None = None) -> Pinned:
        """The commit that was fetched, whatever the revision means by now."""
        pinned = self._memory.pins.get(f"{repo}@{revision or ''}")
        if pinned is None:
            raise _not_fetched(repo)
        files = (
            replace(entry, here=self.cached(pinned.repo, pinned.sha, entry.name) is not None) for entry in pinned.files
        )
        return replace(pinned, files=tuple(files))

    def tags_at(self, repo: str, sha: str) -> tuple[str, ...]:
        """The tags that pointed at the commit."""
        return self._memory.tags.get(f"{repo}@{sha}", ())

    def download(self, repo: str, sha: str, names: Iterable[str], arrived: Callable[[int], None] | None = None) -> Path:
        """The snapshot in the cache, if it holds all of these files."""
        folder = self._storage(repo) / "snapshots" / sha
        if not all((folder / name).is_file() for name in names):
            raise _not_fetched(repo)
        return folder


class PublishingHub(Hub):
    """The Hub of the publish phase: an input that the write token cannot see is as private as it was when fetched.

    `identity_of`: the token is a job's identity's, for this repo. The Hub need not say whose such a token is.
    """

    def __init__(self, memory: Memory, *, identity_of: str | None = None, **connection: Any) -> None:
        super().__init__(**connection)
        self._memory, self._identity_of = memory, identity_of

    def whoami(self) -> Who:
        """As ever; of an identity that the Hub does not name, the account that made our commits on the repo's main branch,
        which only those who may write to it could."""
        try:
            return super().whoami()
        except (Forbidden, NotFound):
            if self._identity_of is None:
                raise
        self._who = Who(name=self._publisher(self._identity_of), role="write", orgs=(), scopes=())
        return self._who

    def _publisher(self, repo: str) -> str:
        """Empty where nothing of ours is there yet."""
        where = self.where_writing(f"read the history of {repo}", repo)
        commits = self.patiently(where, lambda: self.outputs.list_repo_commits(repo))
        ours = (commit for commit in commits if commit.authors and trailer_in(f"{commit.title}\n\n{commit.message}"))
        return next((str(commit.authors[0]) for commit in ours), "")

    def open_draft(self, repo: str, title: str, text: str) -> Pull:
        """As ever; its author is who we are."""
        made = super().open_draft(repo, title, text)
        if self._who is not None and not self._who.name:
            self._who = replace(self._who, name=made.author)
        return made

    def privacy(self, repo: str) -> tuple[bool, str | None]:
        """As the Hub says now, else as it was recorded."""
        try:
            return super().privacy(repo)
        except Outside:
            known = self._memory.privacy(repo)
            if known is None:
                raise
            return known


def _not_fetched(repo: str) -> NotFound:
    return NotFound(
        f"{repo} is not in the cache as the fetch phase left it.",
        remedy="Give both phases the same cache (HF_HOME) and work folder, and run fetch again.",
    )
