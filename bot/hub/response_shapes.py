"""The shapes of the Hub's answers, checked: another shape is a ValueError, which `translate_errors` makes a sentence of.

The client takes over much of what it is told as it is: a file named `../x`, a sha that is none, a tag without a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # re-exported lazily

SHA = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
LONGEST = 1024  # bytes of a path; of one name in it, what file systems take
LONGEST_NAME = 255
MOST_FILES = 1_000_000


def _repo_at(api: HfApi, *args: Any, **kwargs: Any) -> Any:
    """A repo at a commit."""
    info = HfApi.model_info(api, *args, **kwargs)
    _require(isinstance(info.id, str), "a repo without a name")
    validate_repo_id(info.id)
    _require(_matches(SHA, info.sha), "a commit that is none")
    _require(info.private in (None, True, False), "neither private nor public")
    _require(info.gated in (None, False, "auto", "manual"), "a gate of an unknown kind")
    return info


class CheckedApi(HfApi):
    """The client, with its answers checked. Raises ValueError, within the callers' `translate_errors`."""

    model_info = _repo_at

    def whoami(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Whom the token belongs to."""
        account = super().whoami(*args, **kwargs)
        orgs = account.get("orgs") or []
        _require(isinstance(account, dict) and _is_text(account.get("name")), "an account without a name")
        _require(isinstance(orgs, list) and all(isinstance(org, dict) for org in orgs), "organizations that are none")
        _require(all(_is_text(org.get("name")) for org in orgs), "an organization without a name")
        return account

    def list_repo_tree(self, *args: Any, **kwargs: Any) -> Iterable[Any]:
        """The files of a commit; none whose name leads out of a folder, or that no file system takes."""
        for number, item in enumerate(super().list_repo_tree(*args, **kwargs)):
            _require(number < MOST_FILES, "more files than any repo has")
            _require(is_path(item.path), f"a file named {item.path!r:.120}")
            if isinstance(item, RepoFile):
                _require(type(item.size) is int and 0 <= item.size < 1 << 62, f"no size of {item.path}")
                _require(_matches(SHA, item.blob_id), f"no blob of {item.path}")
                _require(item.lfs is None or _matches(SHA256, item.lfs.sha256), f"no sha256 of {item.path}")
            yield item

    def list_repo_refs(self, *args: Any, **kwargs: Any) -> Any:
        """Branches and tags."""
        refs = super().list_repo_refs(*args, **kwargs)
        for ref in (*refs.branches, *refs.tags):
            _require(_is_text(ref.name) and _matches(SHA, ref.target_commit), "a tag or branch without a commit")
        return refs

    def create_commit(self, *args: Any, **kwargs: Any) -> Any:
        """The commit that was made."""
        commit = super().create_commit(*args, **kwargs)
        _require(_matches(SHA, commit.oid), "a commit that is none")
        return commit

    def get_discussion_details(self, *args: Any, **kwargs: Any) -> Any:
        """A pull request with its events."""
        details = super().get_discussion_details(*args, **kwargs)
        _require(type(details.num) is int and isinstance(details.status, str), "a pull request without a number")
        for event in details.events:
            _require(isinstance(getattr(event, "content", ""), str), "a comment without words")
        return details


def is_path(name: object) -> bool:
    """Whether a file of this name stays in the folder that it is put in, on any file system."""
    if not _is_text(name) or not isinstance(name, str) or len(name.encode()) > LONGEST:
        return False
    path = PurePosixPath(name)
    odd = any(ord(letter) < 32 or letter in "\\\x7f" for letter in name)
    short = all(len(part.encode()) <= LONGEST_NAME for part in path.parts)
    return (
        bool(path.parts)
        and short
        and not odd
        and not path.is_absolute()
        and ".." not in path.parts
        and str(path) == name
    )


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or not value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _matches(form: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(f"it names {what}")
