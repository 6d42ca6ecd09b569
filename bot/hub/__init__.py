"""The only package that calls huggingface_hub: each call goes through `Hub`, each failure leaves as a bot.errors sentence.

The client takes a third of a second to import, longer than merging a small model: what is named here is imported when it
is first used, and a merge of two folders never uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bot.events import Emit, silent
from bot.hub.names import cache_folder, is_repo_id, scratch_folder, shown_address

if TYPE_CHECKING:
    from bot.hub.client import Hub
    from bot.hub.connection import Blob
    from bot.hub.errors import HubBusy, NoDiscussions, Unserved
    from bot.hub.pulls import Pull
    from bot.hub.read import Pinned
    from bot.hub.rights import Who
    from bot.hub.upload import Change, LostUpload, NotCopied, ServerCopy, Upload
    from bot.hub.write import Target

__all__ = [
    "Blob", "HubBusy", "Change", "LostUpload", "Hub", "NoDiscussions", "NotCopied",
    "Pinned", "Pull", "ServerCopy", "Target", "Unserved",
    "Upload", "Who", "is_repo_id", "lazy_hub",
]  # fmt: skip

HOMES = {
    "Hub": "client", "Blob": "connection", "HubBusy": "errors", "NoDiscussions": "errors", "Unserved": "errors", "Pull": "pulls",
    "Pinned": "read", "Change": "upload", "Upload": "upload", "ServerCopy": "upload",
    "NotCopied": "upload", "LostUpload": "upload", "Target": "write", "Who": "rights",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(f"bot.hub.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _LazyHub:
    """Stands for a Hub until something is asked of it."""

    def __init__(self, make: Callable[[], Hub]) -> None:
        self._make, self._made = make, cast("Hub | None", None)
        self._emit: Emit = silent

    @property
    def scratch(self) -> Path:
        """A private folder of ours beside the download cache."""
        return self._made.scratch if self._made else scratch_folder()

    @property
    def cache_dir(self) -> Path:
        """The download cache."""
        return self._made.cache_dir if self._made else cache_folder()

    def tell(self, emit: Emit) -> None:
        """Whom a Hub tells of long waits, once there is one."""
        self._emit = emit
        if self._made is not None:
            self._made.tell(emit)

    @property
    def address(self) -> str:
        """The Hub's address, as it may be shown."""
        return self._made.address if self._made else shown_address()

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            self._made = self._make()
            self._made.tell(self._emit)
        return getattr(self._made, name)


def lazy_hub(make: Callable[[], Hub]) -> Hub:
    """A Hub that `make` makes when it is first asked for something that only a Hub knows."""
    return cast("Hub", _LazyHub(make))
