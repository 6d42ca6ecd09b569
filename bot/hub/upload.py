"""Sending a merge to the target: its card is looked at, its files go up one by one, and one commit makes them visible."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
from huggingface_hub.errors import BadRequestError, FileDuplicationError, HfHubHTTPError
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # re-exported lazily
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from bot.errors import Outside
from bot.hub.errors import HubBusy, Where, plain, translate_errors
from bot.hub.sentences import is_not_there_yet
from bot.hub.write import TargetClient
from bot.untrusted.redact import redact

SMALL = 10_000_000  # bytes; smaller files travel together
STORAGE = re.compile(r"/info/lfs/objects/verify|/api/complete_multipart")

DUPLICATE = re.compile(r"/lfs-files/duplicate$")

Upload = CommitOperationAdd  # a file whose content the Hub has already; what is in it is the client's business
ServerCopy = CommitOperationCopy  # a file that the Hub itself copies from another repo


class NotCopied(Outside):
    """The Hub does not copy a file from the base's repo: it has to be sent."""


class LostUpload(Outside):
    """The Hub no longer holds what an earlier run, or an earlier hour of this one, has sent to it."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One commit to be made. `parent` is the sha that `revision` must still have."""

    repo: str
    revision: str
    parent: str
    title: str
    text: str
    delete: tuple[str, ...]


def _errors(answer: Any) -> str:
    """What the Hub says against a card; its whole answer where that has another shape."""
    try:
        return "; ".join(str(error["message"]) for error in answer.json()["errors"])
    except (ValueError, KeyError, TypeError):
        return str(answer.text)


class UploadClient(TargetClient):
    """What a run sends to its target."""

    def check_card(self, text: str) -> None:
        """Have the Hub validate the card's metadata, before anything large is uploaded. Raises Outside."""
        where = self.where_writing("have the model card checked")
        headers = build_hf_headers(token=self.outputs.token, library_name="adapter-merge")
        url = f"{self.endpoint}/api/validate-yaml"

        def ask() -> str | None:
            answer = get_session().post(url, json={"content": text, "repoType": "model"}, headers=headers)
            if answer.status_code != 400:
                hf_raise_for_status(answer)
                return None
            return _errors(answer)

        errors = self.patiently(where, ask)
        if errors is not None:
            raise Outside(
                f"The Hub does not accept the model card's metadata: {plain(errors, 400)}.",
                remedy="Correct README.md's metadata block (a license can be set with --license).",
            )

    def hashed(self, repo: str, revision: str, name: str, path: Path) -> Upload:
        """A file that `upload` will send, read and hashed beforehand: while another one is on its way."""
        with translate_errors(self.where_writing(f"upload to {repo}", repo, revision)):
            return _addition(name, path)

    def upload(
        self,
        repo: str,
        revision: str,
        files: Mapping[str, Path],
        *,
        pull_request: bool,
        sent: Callable[[int], None],
        hashed: Mapping[str, Upload] | None = None,
    ) -> tuple[Upload, ...]:
        """Send the contents, large files one by one, without any commit. `sent` is told the bytes of each; `hashed`: what
        `hashed` has made of some.

        `pull_request`: the commit will go to a PR that does not exist yet, so the token need not write to `revision`.
        The result goes to `commit` and is spent there.
        """
        where = self.where_writing(f"upload to {repo}", repo, revision)
        done = []
        for names in _loads(files):
            with translate_errors(where):
                adds = [(hashed or {}).get(name) or _addition(name, files[name]) for name in names]

            def send(adds: list[Upload] = adds) -> None:
                self.outputs.preupload_lfs_files(
                    repo,
                    additions=adds,
                    revision=revision,
                    create_pr=pull_request,
                    free_memory=False,
                    gitignore_content="",  # or the target's own .gitignore could drop proven files without a word
                )

            self._send(where, send)
            sent(sum(files[name].stat().st_size for name in names))
            done.extend(adds)
        return tuple(done)

    def _send(self, where: Where, send: Callable[[], None]) -> None:
        """`send`; once more from its start where the storage refused what it had been asked for: a place is for some
        minutes only, and one that was filled by a try whose answer was lost is closed. What has arrived is not sent again."""
        try:
            self.patiently(where, send)
        except Outside as error:
            if not _by_storage(error):
                raise
            self.patiently(where, send)

    def keep_file(self, repo: str, name: str, content: bytes) -> None:
        """A small file in a repo of ours, in a commit of its own: of notes, never of a target."""
        where = self.where_writing(f"keep {name} in {repo}", repo)
        self.patiently(
            where, lambda: self.outputs.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo)
        )

    def holds(self, repo: str, revision: str, sizes: Mapping[str, int]) -> frozenset[str]:
        """Those of these contents, {sha256: size}, that the repo's storage has already, committed or not."""
        if not sizes:
            return frozenset()
        where = self.where_writing(f"ask what {repo} holds", repo, revision)
        infos = [UploadInfo(size=size, sample=b"", sha256=bytes.fromhex(sha256)) for sha256, size in sizes.items()]

        def ask() -> frozenset[str]:
            token = None if self.outputs.token is True else self.outputs.token
            wanted, _, _ = post_lfs_batch_info(infos, token, "model", repo, endpoint=self.endpoint)  # type: ignore[arg-type]
            # Of what is there already the answer holds no address to send it to.
            return frozenset(str(each["oid"]) for each in wanted if not each.get("actions")) & sizes.keys()

        return self.patiently(where, ask)

    def commit(
        self,
        change: Change,
        additions: Iterable[Upload | ServerCopy],
        landed: Callable[[], str | None] | None = None,
    ) -> str:
        """One commit with everything; its sha. Raises Moved where `change.parent` is no longer the head, NotCopied, LostUpload.

        `landed`: looks whether the head is this commit already, made by a try whose answer was lost, or by another run.
        """
        additions = list(additions)
        where = self.where_writing(f"commit to {change.repo}", change.repo, change.revision)
        try:
            return self.patiently(where, lambda: self._try_to_commit(change, additions), landed)
        except HubBusy as error:
            if not isinstance(error.__cause__, BadRequestError) or all(map(_is_here, additions)):
                raise
            raise LostUpload(
                f"The Hub no longer holds what was sent to {change.repo} for this commit.",
                remedy="Run it again: what is missing is made and sent anew.",
            ) from error

    def _try_to_commit(self, change: Change, additions: Sequence[Upload | ServerCopy]) -> str:
        operations: list[Any] = [*additions, *(CommitOperationDelete(path_in_repo=name) for name in change.delete)]
        copies = [addition for addition in additions if isinstance(addition, CommitOperationCopy)]
        try:
            made = self.outputs.create_commit(
                change.repo,
                operations,
                commit_message=redact(change.title),
                commit_description=redact(change.text),
                revision=change.revision,
                parent_commit=change.parent,
            )
        except BadRequestError as error:
            if is_not_there_yet(error):
                for addition in additions:
                    if isinstance(addition, CommitOperationAdd) and _is_here(addition):
                        addition._is_uploaded = False  # the client then asks again for each, and sends what is missing
            raise
        except (ValueError, FileDuplicationError) as error:  # no Xet hash, or one by one refused
            if not copies:
                raise
            raise _not_copied(copies[0], str(error)) from error
        except HfHubHTTPError as error:
            if not DUPLICATE.search(error.response.request.url.path) or error.response.status_code >= 500:
                raise
            raise _not_copied(copies[0], str(error)) from error
        return str(made.oid)


def _by_storage(error: Outside) -> bool:
    """Whether it was the storage, not the Hub, that refused."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    if cause is None or isinstance(error, HubBusy):
        return False
    request = cause.response.request
    return request.method == "PUT" or STORAGE.search(request.url.path) is not None


def _addition(name: str, path: Path) -> Upload:
    """A small file is read once and for all, so that what its hash is of is what the commit holds."""
    is_small = path.stat().st_size < SMALL
    return CommitOperationAdd(path_in_repo=name, path_or_fileobj=path.read_bytes() if is_small else path)


def sent_before(name: str, size: int, sha256: str, sample: bytes) -> Upload:
    """A file that the Hub holds and this machine no longer does. `sample`: its first 512 bytes."""
    upload = CommitOperationAdd(path_in_repo=name, path_or_fileobj=b"")
    upload.upload_info = UploadInfo(size=size, sample=sample, sha256=bytes.fromhex(sha256))
    upload._upload_mode, upload._should_ignore, upload._is_uploaded = "lfs", False, True
    return upload


def copy_of(name: str, repo: str, sha: str, file: str) -> ServerCopy:
    """`file` of a commit of another repo, under `name`, copied by the Hub itself."""
    return CommitOperationCopy(
        src_path_in_repo=file, path_in_repo=name, src_revision=sha, src_repo_id=repo, src_repo_type="model"
    )


def _is_here(addition: Upload | ServerCopy) -> bool:
    """Whether its content can be sent once more."""
    if isinstance(addition, CommitOperationCopy):
        return True
    content = addition.path_or_fileobj
    return len(content) == addition.upload_info.size if isinstance(content, bytes) else Path(str(content)).is_file()


def _not_copied(copy: ServerCopy, why: str) -> NotCopied:
    return NotCopied(
        f"The Hub does not copy {copy.src_path_in_repo} from {copy.src_repo_id}: {plain(why, 200)}.",
        remedy="Run it again with --disk whole, or with a token that may read that repo.",
    )


def _loads(files: Mapping[str, Path]) -> list[list[str]]:
    """The small files together first (they tell at once whether the token may write), then each large one."""
    small = [name for name in sorted(files) if files[name].stat().st_size < SMALL]
    return [*([small] if small else []), *([name] for name in sorted(files) if name not in set(small))]
