"""Pull requests on the target: find ours, open one as a draft, talk on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from huggingface_hub import DiscussionComment

from bot.hub.errors import gate
from bot.hub.write import Writing
from bot.redact import redact


@dataclass(frozen=True, kw_only=True)
class Pull:
    """A pull request with its first comment."""

    num: int
    status: Literal["open", "closed", "merged", "draft"]
    author: str
    text: str
    comment_id: str
    url: str

    @property
    def ref(self) -> str:
        """The git ref that holds its commits."""
        return f"refs/pr/{self.num}"


class Proposing(Writing):
    """What a run needs of the target's pull requests."""

    def my_pulls(self, repo: str) -> Iterable[Pull]:
        """The pull requests that this token's account opened, the newest first; each costs one call, so stop early."""
        me = self.whoami().name
        where = self.where_writing(f"list the pull requests of {repo}", repo)
        listed = self.patiently(
            where, lambda: list(self.outputs.get_repo_discussions(repo, author=me, discussion_type="pull_request"))
        )
        for item in listed:
            if item.author == me and item.is_pull_request:
                yield self.pull(repo, item.num)

    def require_pulls(self, repo: str) -> None:
        """Raise NoDiscussions where the repo takes no pull requests."""
        where = self.where_writing(f"list the pull requests of {repo}", repo)
        self.patiently(where, lambda: next(iter(self.outputs.get_repo_discussions(repo)), None))

    def pull(self, repo: str, num: int) -> Pull:
        """One pull request."""
        where = self.where_writing(f"read pull request {num} of {repo}", repo)
        found = self.patiently(where, lambda: self.outputs.get_discussion_details(repo, num))
        first = next((event for event in found.events if isinstance(event, DiscussionComment)), None)
        return Pull(
            num=found.num,
            status=found.status,
            author=found.author,
            text=first.content if first else "",
            comment_id=first.id if first else "",
            url=found.url,
        )

    def open_draft(self, repo: str, title: str, text: str) -> Pull:
        """A new pull request without commits, in draft."""
        with gate(self.where_writing(f"open a pull request on {repo}", repo)):
            num = self.outputs.create_pull_request(repo, title=redact(title), description=redact(text)).num
        return self.pull(repo, num)

    def rewrite(self, repo: str, pull: Pull, text: str) -> None:
        """Replace the pull request's first comment."""
        with gate(self.where_writing(f"edit pull request {pull.num} of {repo}", repo)):
            self.outputs.edit_discussion_comment(repo, pull.num, pull.comment_id, redact(text))

    def comment(self, repo: str, num: int, text: str) -> None:
        """Add a comment."""
        with gate(self.where_writing(f"comment on pull request {num} of {repo}", repo)):
            self.outputs.comment_discussion(repo, num, redact(text))

    def set_status(self, repo: str, num: int, status: Literal["open", "closed"], comment: str = "") -> None:
        """Take a draft out of draft (`open`), or close it."""
        with gate(self.where_writing(f"mark pull request {num} of {repo} as {status}", repo)):
            self.outputs.change_discussion_status(repo, num, status, comment=redact(comment))
