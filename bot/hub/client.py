"""One Hub: what reading, writing and pull requests share."""

from __future__ import annotations

from bot.hub.history import History
from bot.hub.pulls import Proposing
from bot.hub.read import Reading
from bot.hub.tags import Tagging


class Hub(Reading, Tagging, History, Proposing):
    """One Hub, its two tokens (read the inputs, write the target) and the download cache."""
