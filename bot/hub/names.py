"""Repo names, and folders and addresses by the client's rules: no Hub is asked, and the client is imported only where needed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bot.untrusted.redact import redact

REVISION = re.compile(r"(?!.*(\.\.|//|@\{))\w[\w./+=@%-]*(?<![./])")  # of what git allows, what no shell reads


def is_repo_id(text: str) -> bool:
    """Whether the Hub could have a repo of this name (`owner/name`, or one of its old one-word names)."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # re-exported lazily

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def counted(name: str) -> list[str | int]:
    """A key to sort names by, as people count: checkpoint-500 before checkpoint-1000."""
    return [int(part) if position % 2 else part for position, part in enumerate(re.split(r"([0-9]+)", name))]


def cache_folder() -> Path:
    """The client's download cache, by its own rules (huggingface_hub.constants)."""
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or str(Path(_home()) / "hub")
    return Path(os.path.expandvars(cache)).expanduser().resolve()


def scratch_folder() -> Path:
    """Our private folder for that cache."""
    return scratch_for(cache_folder())


def scratch_for(cache: Path) -> Path:
    """Our private folder for a download cache: beside it, or below HF_HOME where nothing may be made beside it (`/cache`).

    bot/launch.sh chooses by the same rule, and gives every container what it chose.
    """
    beside = cache.parent / "adapter-merge"
    there = next(folder for folder in (beside, *beside.parents) if os.access(folder, os.F_OK))
    if os.access(there, os.W_OK):
        return beside
    return Path(os.path.expandvars(_home())).expanduser().resolve() / "adapter-merge"


def _home() -> str:
    return os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")


def shown_address() -> str:
    """The Hub's address by the client's own rule, as it may be shown: without a user and a password."""
    return redact((os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"))
