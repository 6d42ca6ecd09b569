"""Writing the target: look at it, create it, send files, commit once, set tags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

from bot.errors import Forbidden, NotFound, Outside
from bot.hub.door import Blob, Door
from bot.hub.errors import gate, plain
from bot.redact import redact

SMALL = 10_000_000  # bytes; smaller files travel together

Upload = CommitOperationAdd  # a file whose content the Hub has already; what is in it is the client's business


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


@dataclass(frozen=True, kw_only=True)
class Who:
    """Whom a token belongs to, and what it may do; `role` is read, write, fineGrained …"""

    name: str
    role: str
    orgs: tuple[str, ...]
    scopes: tuple[str, ...]  # what a fine-grained token is limited to, e.g. "acme/model: repo.write"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One commit to be made. `parent` is the sha that `revision` must still have."""

    repo: str
    revision: str
    parent: str
    title: str
    text: str
    delete: tuple[str, ...]


class Writing(Door):
    """What a run needs of its target."""

    _who: Who | None = None

    def whoami(self) -> Who:
        """The token's owner and reach. Asked once: the Hub limits this call strictly."""
        if self._who is None:
            where = self.where_writing("ask whose token this is")
            self._who = self.patiently(where, lambda: _who(self.outputs.whoami()))
        return self._who

    def target(self, repo: str) -> Target | None:
        """The repo's main branch and its files; None where it does not exist for this token."""
        where = self.where_writing(f"look at {repo}", repo)
        try:
            found = self.patiently(where, lambda: self.outputs.model_info(repo))
        except NotFound:
            return None
        assert found.sha is not None
        files = self.tree(self.outputs, where, repo, found.sha)
        return Target(repo=found.id, sha=found.sha, files=files, private=bool(found.private), gated=found.gated or None)

    def target_name(self, repo: str) -> str | None:
        """The target as the Hub spells it today: renamed repos answer to their old names. None where it does not exist."""
        try:
            return str(
                self.patiently(self.where_writing(f"look at {repo}", repo), lambda: self.outputs.model_info(repo)).id
            )
        except NotFound:
            return None

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

    def commit_messages(self, repo: str, revision: str = "main") -> list[tuple[str, str]]:
        """(sha, whole message) of a branch's commits, the newest first."""
        where = self.where_writing(f"read the history of {repo}", repo, revision)
        with gate(where):
            commits = self.outputs.list_repo_commits(repo, revision=revision)
        return [(commit.commit_id, f"{commit.title}\n\n{commit.message}") for commit in commits]

    def require_write(self, repo: str) -> None:
        """Raise Forbidden, before anything is uploaded, where the token may not write to the repo."""
        where = self.where_writing(f"write to {repo}", repo)
        self.patiently(where, lambda: self.outputs.auth_check(repo, write=True))

    # --- the repo ---------------------------------------------------------------------------------------------------

    def require_create(self, repo: str) -> None:
        """Raise Forbidden where the token's owner cannot have a repo of this name, or the token cannot create one."""
        who, owner = self.whoami(), repo.partition("/")[0]
        if owner.lower() not in {name.lower() for name in (who.name, *who.orgs)}:
            raise Forbidden(
                f"{repo} does not exist, and the token's owner {who.name} is not in {owner}.",
                remedy=f"Name a target of {who.name} or of an organization that this account is in.",
            )
        if who.role == "read":
            raise Forbidden(
                f"{repo} does not exist, and the token can only read.", remedy="Use a token of role write as HF_TOKEN."
            )

    def create(self, repo: str) -> None:
        """A new, private model repo."""
        with gate(self.where_writing(f"create {repo}", repo)):
            self.outputs.create_repo(repo, private=True)

    def set_gated(self, repo: str, gated: str) -> None:
        """Gate the repo as `auto` or `manual`."""
        mode: Literal["auto", "manual"] = "manual" if gated == "manual" else "auto"
        with gate(self.where_writing(f"gate {repo}", repo)):
            self.outputs.update_repo_settings(repo, gated=mode)

    def make_public(self, repo: str) -> None:
        """Open a private repo to everyone."""
        with gate(self.where_writing(f"make {repo} public", repo)):
            self.outputs.update_repo_settings(repo, private=False)

    def tags(self, repo: str) -> dict[str, str]:
        """The repo's tags and the commits they point at."""
        where = self.where_writing(f"list the tags of {repo}", repo)
        refs = self.patiently(where, lambda: self.outputs.list_repo_refs(repo))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def tag(self, repo: str, name: str, sha: str) -> None:
        """A new tag at a commit."""
        with gate(self.where_writing(f"tag {repo} as {name}", repo, sha)):
            self.outputs.create_tag(repo, tag=name, revision=sha)

    # --- files ------------------------------------------------------------------------------------------------------

    def check_card(self, text: str) -> None:
        """Have the Hub validate the card's metadata, before anything large is uploaded. Raises Outside."""
        where = self.where_writing("have the model card checked")
        headers = build_hf_headers(token=self.outputs.token, library_name="adapter-merge")
        url = f"{self.endpoint}/api/validate-yaml"
        with gate(where):
            answer = get_session().post(url, json={"content": text, "repoType": "model"}, headers=headers)
            refused = answer.json().get("errors", []) if answer.status_code == 400 else []
            errors = "; ".join(str(error.get("message")) for error in refused)
        if answer.status_code == 400:
            raise Outside(
                f"The Hub does not accept the model card's metadata: {plain(errors, 400)}.",
                remedy="Correct README.md's metadata block (a license can be set with --license).",
            )

    def upload(
        self, repo: str, revision: str, files: Mapping[str, Path], *, pull_request: bool, sent: Callable[[int], None]
    ) -> tuple[Upload, ...]:
        """Send the contents, large files one by one, without any commit. `sent` is told the bytes of each.

        `pull_request`: the commit will go to a PR that does not exist yet, so the token need not write to `revision`.
        The result goes to `commit` and is spent there.
        """
        where = self.where_writing(f"upload to {repo}", repo, revision)
        done = []
        for names in _loads(files):
            with gate(where):
                adds = [_addition(name, files[name]) for name in names]
                self.outputs.preupload_lfs_files(
                    repo,
                    additions=adds,
                    revision=revision,
                    create_pr=pull_request,
                    free_memory=False,
                    gitignore_content="",  # or the target's own .gitignore could drop proven files without a word
                )
            sent(sum(files[name].stat().st_size for name in names))
            done.extend(adds)
        return tuple(done)

    def commit(self, change: Change, additions: Iterable[Upload]) -> str:
        """One commit with everything; its sha. Raises Moved where `change.parent` is no longer the head."""
        where = self.where_writing(f"commit to {change.repo}", change.repo, change.revision)
        operations: list[Any] = [*additions, *(CommitOperationDelete(path_in_repo=name) for name in change.delete)]
        with gate(where):
            commit = self.outputs.create_commit(
                change.repo,
                operations,
                commit_message=redact(change.title),
                commit_description=redact(change.text),
                revision=change.revision,
                parent_commit=change.parent,
            )
        return str(commit.oid)


def _addition(name: str, path: Path) -> Upload:
    """A small file is read once and for all, so that what its hash is of is what the commit holds."""
    is_small = path.stat().st_size < SMALL
    return CommitOperationAdd(path_in_repo=name, path_or_fileobj=path.read_bytes() if is_small else path)


def _loads(files: Mapping[str, Path]) -> list[list[str]]:
    """The small files together first (they tell at once whether the token may write), then each large one."""
    small = [name for name in sorted(files) if files[name].stat().st_size < SMALL]
    return [*([small] if small else []), *([name] for name in sorted(files) if name not in set(small))]


def _who(found: dict[str, Any]) -> Who:
    token = (found.get("auth") or {}).get("accessToken") or {}
    scoped = (token.get("fineGrained") or {}).get("scoped") or []
    return Who(
        name=found["name"],
        role=str(token.get("role", "unknown")),
        orgs=tuple(org["name"] for org in found.get("orgs", [])),
        scopes=tuple(
            f"{entry.get('entity', {}).get('name', '?')}: {', '.join(entry.get('permissions', []))}" for entry in scoped
        ),
    )
