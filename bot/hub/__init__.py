"""The only door to huggingface_hub: each call goes through `Hub`, each failure leaves as a bot.errors sentence."""

from __future__ import annotations

from bot.hub.door import Blob
from bot.hub.errors import Busy
from bot.hub.pulls import Proposing, Pull
from bot.hub.read import Pinned, Reading, blob_sha256, is_repo_id
from bot.hub.write import Change, Target, Upload, Who

__all__ = ["Blob", "Busy", "Change", "Hub", "Pinned", "Pull", "Target", "Upload", "Who", "blob_sha256", "is_repo_id"]


class Hub(Reading, Proposing):
    """One Hub, its two tokens (read the inputs, write the target) and the download cache."""
