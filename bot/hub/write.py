"""Writing the target: look at it, create it, set what it is to be, and its tags. Its files: `bot.hub.upload`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal
from urllib.parse import quote

from huggingface_hub.utils import build_hf_headers, paginate  # type: ignore[attr-defined]  # re-exported lazily

from bot.errors import Forbidden, NotFound
from bot.hub import rights
from bot.hub.connection import Blob, Connection
from bot.hub.errors import Unserved
from bot.hub.rights import Who, who_of
from bot.hub.sentences import BAD_TOKEN

HISTORY = 500  # commits of the target that are looked through for ours; where it is older, the report alone is believed


@dataclass(frozen=True, kw_only=True)
class Target:
    """A repo that can be published to, as it is now."""

    repo: str
    sha: str
    files: dict[str, Blob]
    private: bool
    gated: str | None

    @property
    def empty(self) -> bool:
        """Whether nobody has put anything there yet (the Hub itself writes .gitattributes)."""
        return self.files.keys() <= {".gitattributes"}


class TargetClient(Connection):
    """What a run needs of its target."""

    _who: Who | None = None
    _anonymous = False  # whether the Hub has refused to say

    def whoami(self) -> Who:
        """The token's owner and reach. Asked once: the Hub limits this call strictly."""
        if self._who is None:
            where = self.where_writing("ask whose token this is")
            self._who = self.patiently(where, lambda: who_of(self.outputs.whoami()))
        return self._who

    def target(self, repo: str) -> Target | None:
        """The repo's main branch and its files; None where it does not exist for this token."""
        where = self.where_writing(f"look at {repo}", repo)
        try:
            info = self.patiently(where, lambda: self.outputs.model_info(repo))
        except NotFound:
            return None
        assert info.sha is not None
        files = self.tree(self.outputs, where, repo, info.sha)
        return Target(repo=info.id, sha=info.sha, files=files, private=bool(info.private), gated=info.gated or None)

    def target_name(self, repo: str) -> str | None:
        """The target as the Hub spells it today: renamed repos answer to their old names. None where it does not exist."""
        try:
            return str(
                self.patiently(self.where_writing(f"look at {repo}", repo), lambda: self.outputs.model_info(repo)).id
            )
        except NotFound:
            return None

    def visibility(self, repo: str) -> tuple[bool, str | None]:
        """(private, gated) of the target, now."""
        where = self.where_writing(f"look at {repo}", repo)
        info = self.patiently(where, lambda: self.outputs.model_info(repo))
        return bool(info.private), info.gated or None

    def head(self, repo: str, revision: str = "main") -> str:
        """The sha that a branch or PR ref has now."""
        where = self.where_writing(f"look at {repo}", repo, revision)
        return str(self.patiently(where, lambda: self.outputs.model_info(repo, revision=revision)).sha)

    def target_files(self, repo: str, revision: str) -> dict[str, Blob]:
        """All files of the target at a revision."""
        return self.tree(self.outputs, self.where_writing(f"list the files of {repo}", repo, revision), repo, revision)

    def target_text(self, repo: str, revision: str, file: str) -> bytes | None:
        """A small file of the target, None where it is not there."""
        where = self.where_writing(f"read {file} of {repo}", repo, revision)
        return self.text(self.outputs, replace(where, file=file))

    def commit_messages(self, repo: str, revision: str = "main", most: int = HISTORY) -> list[tuple[str, str]]:
        """(sha, whole message) of a branch's newest commits, the newest first; 50 of them a call."""
        where = self.where_writing(f"read the history of {repo}", repo, revision)
        url = f"{self.endpoint}/api/models/{repo}/commits/{quote(revision, safe='')}"
        headers = build_hf_headers(token=self.outputs.token, library_name="adapter-merge")

        def read() -> list[tuple[str, str]]:
            commits = islice(paginate(url, params={}, headers=headers), most)
            return [(str(commit["id"]), f"{commit['title']}\n\n{commit['message']}") for commit in commits]

        return self.patiently(where, read)

    def require_write(self, repo: str) -> None:
        """Raise Forbidden, before anything is uploaded, where the token may not write to the repo."""
        where = self.where_writing(f"write to {repo}", repo)
        try:
            self.patiently(where, lambda: self.outputs.auth_check(repo, write=True))
        except Forbidden as refused:
            who = self.whoami_or_none()
            refused.remedy = (who and rights.remedy_for(who, repo)) or refused.remedy
            raise
        if (who := self.whoami_or_none()) is not None:
            rights.require_write(who, repo)

    def whoami_or_none(self) -> Who | None:
        """As `whoami`; None for a token that the Hub does not tell of, as those of trusted publishers may be."""
        if self._anonymous:
            return None
        try:
            return self.whoami()
        except (Forbidden, NotFound, Unserved):
            self._anonymous = True
            return None

    # --- the repo ---------------------------------------------------------------------------------------------------

    def require_create(self, repo: str) -> None:
        """Raise Forbidden where the token's owner cannot have a repo of this name, or the token cannot create one."""
        try:
            who = self.whoami()
        except (Forbidden, NotFound) as refused:
            if refused.code == BAD_TOKEN:
                raise
            return  # the Hub does not tell whose it is, and decides when the repo is made
        rights.require_create(who, repo)

    def create(self, repo: str, *, private: bool = True) -> None:
        """A new model repo. Raises Outside where there is one of that name with something in it."""

        def landed() -> Target | None:
            target = self.target(repo)
            return target if target is not None and target.empty else None

        where = self.where_writing(f"create {repo}", repo)
        self.patiently(where, lambda: self.outputs.create_repo(repo, private=private), landed)

    def set_gated(self, repo: str, gated: str) -> None:
        """Gate the repo as `auto` or `manual`."""
        mode: Literal["auto", "manual"] = "manual" if gated == "manual" else "auto"
        where = self.where_writing(f"gate {repo}", repo)
        self.patiently(where, lambda: self.outputs.update_repo_settings(repo, gated=mode))

    def set_private(self, repo: str, private: bool) -> None:
        """Hide the repo from everyone else, or open it to everyone."""
        where = self.where_writing(f"make {repo} {'private' if private else 'public'}", repo)
        self.patiently(where, lambda: self.outputs.update_repo_settings(repo, private=private))

    def tags(self, repo: str) -> dict[str, str]:
        """The repo's tags and the commits they point at."""
        where = self.where_writing(f"list the tags of {repo}", repo)
        refs = self.patiently(where, lambda: self.outputs.list_repo_refs(repo))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def tag(self, repo: str, name: str, sha: str) -> None:
        """A new tag at a commit."""
        where = self.where_writing(f"tag {repo} as {name}", repo, sha)

        def landed() -> bool | None:
            return self.tags(repo).get(name) == sha or None

        self.patiently(where, lambda: self.outputs.create_tag(repo, tag=name, revision=sha), landed)
