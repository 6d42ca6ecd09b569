"""One Hub: what reading, writing and pull requests share."""

from __future__ import annotations

from bot.hub.history import HistoryClient
from bot.hub.lists import ListClient
from bot.hub.pulls import PullRequestClient
from bot.hub.read import InputClient
from bot.hub.tags import TagClient
from bot.hub.talk import DiscussionClient


class Hub(InputClient, TagClient, ListClient, HistoryClient, DiscussionClient, PullRequestClient):
    """One Hub, its two tokens (read the inputs, write the target) and the download cache."""
