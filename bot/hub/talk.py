"""Discussions of a repo, as one who takes part in them: read, opened, and comments of ours that are made once and edited in place.

Our comments bear a hidden mark, by which they are known again after a restart, or where the Hub's answer was lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any
from urllib.parse import quote

from huggingface_hub import DiscussionComment
from huggingface_hub.utils import build_hf_headers, paginate  # type: ignore[attr-defined]  # re-exported lazily

from bot.errors import Forbidden, NotFound
from bot.hub.rights import DISCUSS, WRITE
from bot.hub.sentences import TOKENS, Unserved
from bot.hub.upload import UploadClient
from bot.untrusted.redact import redact

TITLE = "A merged model of this adapter"  # of our one discussion on an adapter's repo
CLOSING = "Feel free to close this discussion; a closed one is left alone."
WRITERS = ("admin", "write")  # roles in an organization that may write to all of its repos
MEMBERS = 10_000  # of an organization that are looked through
LISTED = 50  # discussions of our account that are looked at on one repo


@dataclass(frozen=True, kw_only=True)
class Remark:
    """A comment in a discussion. `author`: "" where the Hub names none any more."""

    id: str
    author: str
    text: str
    hidden: bool


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A discussion or a pull request with its comments, the oldest first."""

    num: int
    title: str
    closed: bool
    url: str
    remarks: tuple[Remark, ...]

    def marked(self, author: str, mark: str) -> Remark | None:
        """The comment of this author that bears the mark; of others it would be a copy."""
        return next((each for each in self.remarks if each.author == author and mark in each.text), None)

    def remark(self, id: str) -> Remark | None:
        """A comment by its id."""
        return next((each for each in self.remarks if each.id == id), None)


class DiscussionClient(UploadClient):
    """What the bot needs of discussions."""

    def require_discussing(self) -> None:
        """Raise Forbidden where the token may comment nowhere."""
        who = self.whoami()
        if who.role == "read":
            raise Forbidden(
                "The token can only read, so it cannot comment.",
                remedy="Use a token of role write, or a fine-grained one with discussions, as ADAPTER_MERGE_HUB_TOKEN.",
            )
        if who.grants is not None and not any({DISCUSS, WRITE} & {*grant.permissions} for grant in who.grants):
            raise Forbidden(
                f"This fine-grained token may comment nowhere: it lacks {DISCUSS} (it has {who.held}).",
                remedy=f"Let the token interact with discussions of the adapters ({TOKENS}).",
            )

    def may_write(self, repo: str, name: str) -> bool:
        """Whether an account may write to a repo, as far as the Hub tells: its owner may, and of an organization those members whose
        role there is told, and is admin or write. Who is limited to resource groups is not counted."""
        owner = repo.partition("/")[0]
        if not name or name.casefold() == owner.casefold():
            return bool(name)
        where = self.where_writing(f"list the members of {owner}", None)
        headers = build_hf_headers(token=self.outputs.token, library_name="adapter-merge")

        def read() -> bool:
            # The client's own list leaves the role out.
            members = paginate(f"{self.endpoint}/api/organizations/{quote(owner)}/members", params={}, headers=headers)
            roles = [each.get("role") for each in islice(members, MEMBERS) if _is_free_member(each, name)]
            return any(role in WRITERS for role in roles)

        try:
            return self.patiently(where, read)
        except (NotFound, Forbidden, Unserved):  # a user's account, or an organization that does not tell
            return False

    def conversation(self, repo: str, num: int) -> Conversation:
        """One discussion."""
        where = self.where_writing(f"read discussion {num} of {repo}", repo)
        return _conversation(self.patiently(where, lambda: self.outputs.get_discussion_details(repo, num)))

    def my_conversations(self, repo: str) -> Iterator[Conversation]:
        """Those that this account began, the newest first, those with our title before all others. Each costs a call."""
        me = self.whoami().name
        where = self.where_writing(f"list the discussions of {repo}", repo)

        def read() -> list[Any]:
            listed = self.outputs.get_repo_discussions(repo, author=me, discussion_type="discussion")
            return [item for item in islice(listed, LISTED) if item.author == me]

        mine = sorted(self.patiently(where, read), key=lambda item: item.title != TITLE)
        yield from (self.conversation(repo, item.num) for item in mine)

    def our_conversations(self, repo: str) -> list[Conversation]:
        """Those of them that have our title."""
        return list(takewhile(lambda each: each.title == TITLE, self.my_conversations(repo)))

    def open_conversation(self, repo: str, text: str, mark: str) -> Conversation:
        """A new discussion of ours, whose first comment bears the mark."""

        def landed() -> Conversation | None:
            me = self.whoami().name
            return next((each for each in self.my_conversations(repo) if each.marked(me, mark)), None)

        def make() -> Conversation:
            return _conversation(self.outputs.create_discussion(repo, TITLE, description=redact(text)))

        return self.patiently(self.where_writing(f"comment on {repo}", repo), make, landed)

    def say(self, repo: str, num: int, text: str, mark: str) -> str:
        """A new comment, which bears the mark; its id."""

        def landed() -> str | None:
            made = self.conversation(repo, num).marked(self.whoami().name, mark)
            return made.id if made else None

        def make() -> str:
            return str(self.outputs.comment_discussion(repo, num, redact(text)).id)

        return self.patiently(self.where_writing(f"comment on {repo}", repo), make, landed)

    def edit(self, repo: str, num: int, remark: str, text: str) -> None:
        """Give a comment of ours other words."""
        where = self.where_writing(f"edit a comment on {repo}", repo)
        self.patiently(where, lambda: self.outputs.edit_discussion_comment(repo, num, remark, redact(text)))


def _is_free_member(member: Any, name: str) -> bool:
    return str(member.get("user")).casefold() == name.casefold() and not member.get("resourceGroups")


def _conversation(details: Any) -> Conversation:
    comments = (event for event in details.events if isinstance(event, DiscussionComment))
    return Conversation(
        num=details.num,
        title=str(details.title or ""),
        closed=details.status in ("closed", "merged"),
        url=details.url,
        remarks=tuple(
            # The client calls an author who is gone "deleted", which may be somebody's name.
            Remark(id=each.id, author=_author(each), text=each.content, hidden=bool(each.hidden))
            for each in comments
        ),
    )


def _author(event: Any) -> str:
    author = event._event.get("author")
    return str(author.get("name") or "") if isinstance(author, dict) else ""
