"""Pull requests on the target: find ours, open one as a draft, talk on it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from huggingface_hub import DiscussionComment
from huggingface_hub.community import DiscussionCommit

from bot.errors import Forbidden
from bot.hub import rights
from bot.hub.rights import Who
from bot.hub.upload import UploadClient
from bot.untrusted.redact import redact

# However long a repo's history is, this many of our account's pull requests are listed, and as many open ones where there are
# more; and this many are read: first those with a title of ours (which may have been changed, so that it decides no more than
# the order), then the newest.
LISTED = 50
OPEN, CLOSED = 5, 10
TITLE = "Merge "
SIGNED = "<!-- adapter-merge:call={} -->"  # by which a call whose answer was lost knows what it made


@dataclass(frozen=True, kw_only=True)
class Pull:
    """A pull request with its first comment."""

    num: int
    status: Literal["open", "closed", "merged", "draft"]
    author: str
    text: str
    comment_id: str
    url: str
    title: str = ""

    @property
    def ref(self) -> str:
        """The git ref that holds its commits."""
        return f"refs/pr/{self.num}"


class PullRequestClient(UploadClient):
    """What a run needs of the target's pull requests."""

    def my_pulls(self, repo: str) -> Iterable[Pull]:
        """The pull requests that this token's account made: as many as OPEN of the open ones and drafts, then as many as CLOSED of
        those that were closed without being merged. Each costs one call; a closed one only once, since nobody works on it."""
        listed = self._mine(repo)
        yield from self._opened(repo, listed)
        for item in islice((item for item in listed if item.status == "closed"), CLOSED):
            key = (repo, item.num)
            if key not in self._closed:
                self._closed[key] = self.pull(repo, item.num)
            yield self._closed[key]

    def my_finished_pulls(self, repo: str) -> list[int]:
        """The numbers of this account's pull requests that are open, merged or closed, but no drafts; the newest first."""
        return [item.num for item in sorted(self._mine(repo), key=lambda item: -item.num) if item.status != "draft"]

    def open_pulls(self, repo: str) -> Iterable[Pull]:
        """The open ones and drafts among them."""
        return self._opened(repo, self._mine(repo))

    def _opened(self, repo: str, listed: list[Any]) -> Iterable[Pull]:
        for item in islice((item for item in listed if item.status in ("open", "draft")), OPEN):
            yield self.pull(repo, item.num)

    @cached_property
    def _closed(self) -> dict[tuple[str, int], Pull]:
        return {}

    def _mine(self, repo: str) -> list[Any]:
        """What the Hub lists of them. Of a long history the open ones are asked for too: they are the older ones there.
        None of a token that the Hub does not tell of: `require_pulls` lets it open none."""
        if (who := self.whoami_or_none()) is None:
            return []
        listed = self._listed(repo, who.name, "all")
        if len(listed) >= LISTED:
            known = {item.num for item in listed}
            listed += [item for item in self._listed(repo, who.name, "open") if item.num not in known]
        mine = [item for item in listed if item.author == who.name and item.is_pull_request]
        return sorted(mine, key=lambda item: not item.title.startswith(TITLE))

    def _listed(self, repo: str, author: str, status: Literal["all", "open"]) -> list[Any]:
        """Whether a draft counts as open is the Hub's business: it is among all."""
        where = self.where_writing(f"list the pull requests of {repo}", repo)

        def read() -> list[Any]:
            return list(
                islice(
                    self.outputs.get_repo_discussions(
                        repo, author=author, discussion_type="pull_request", discussion_status=status
                    ),
                    LISTED,
                )
            )

        return self.patiently(where, read)

    def require_pulls(self, repo: str) -> None:
        """Raise Forbidden where the token may not open a pull request, or not one that would be known again; NoDiscussions where
        the repo takes none."""
        rights.require_pulls(self.require_known(), repo)
        where = self.where_writing(f"list the pull requests of {repo}", repo)
        self.patiently(where, lambda: next(iter(self.outputs.get_repo_discussions(repo)), None))

    def require_known(self) -> Who:
        """Whose the token is. Raises Forbidden where the Hub does not say, as our pull requests are known by their author."""
        if (who := self.whoami_or_none()) is None:
            raise Forbidden(
                "The Hub does not say whose this token is, so that a later run would not know its own pull requests again.",
                remedy="Pass --publish push, or use an account's own token as HF_TOKEN.",
            )
        return who

    def pull(self, repo: str, num: int) -> Pull:
        """One pull request."""
        return _pull(self._details(repo, num))

    def _details(self, repo: str, num: int) -> Any:
        where = self.where_writing(f"read pull request {num} of {repo}", repo)
        return self.patiently(where, lambda: self.outputs.get_discussion_details(repo, num))

    def open_draft(self, repo: str, title: str, text: str) -> Pull:
        """A new pull request without commits, in draft."""
        signature = SIGNED.format(secrets.token_hex(8))

        def landed() -> Pull | None:
            return next((pull for pull in self.open_pulls(repo) if signature in pull.text), None)

        def make() -> Pull:
            description = f"{redact(text)}\n{signature}"
            return _pull(self.outputs.create_pull_request(repo, title=redact(title), description=description))

        return self.patiently(self.where_writing(f"open a pull request on {repo}", repo), make, landed)

    def rewrite(self, repo: str, pull: Pull, text: str) -> None:
        """Replace the pull request's first comment."""
        where = self.where_writing(f"edit pull request {pull.num} of {repo}", repo)
        self.patiently(
            where, lambda: self.outputs.edit_discussion_comment(repo, pull.num, pull.comment_id, redact(text))
        )

    def rename(self, repo: str, pull: Pull, title: str) -> None:
        """Give the pull request another title, where it has not got that."""
        if pull.title == redact(title):
            return

        def landed() -> bool | None:
            return self.pull(repo, pull.num).title == redact(title) or None

        where = self.where_writing(f"rename pull request {pull.num} of {repo}", repo)
        self.patiently(where, lambda: self.outputs.rename_discussion(repo, pull.num, redact(title)), landed)

    def comment(self, repo: str, num: int, text: str, *, once: bool = False) -> None:
        """Add a comment. `once`: unless it has been said since the last commit."""
        text = redact(text)

        def landed() -> bool | None:
            return _has_comment(self._details(repo, num).events, text) or None

        if once and landed():
            return
        where = self.where_writing(f"comment on pull request {num} of {repo}", repo)
        self.patiently(where, lambda: self.outputs.comment_discussion(repo, num, text), landed)

    def set_status(self, repo: str, num: int, status: Literal["open", "closed"], comment: str = "") -> None:
        """Take a draft out of draft (`open`), or close it."""
        reached = {"open": ("open", "merged"), "closed": ("closed",)}[status]

        def landed() -> bool | None:
            return self.pull(repo, num).status in reached or None

        where = self.where_writing(f"mark pull request {num} of {repo} as {status}", repo)
        self.patiently(
            where, lambda: self.outputs.change_discussion_status(repo, num, status, comment=redact(comment)), landed
        )


def _pull(details: Any) -> Pull:
    first = next((event for event in details.events if isinstance(event, DiscussionComment)), None)
    return Pull(
        num=details.num,
        status=details.status,
        author=details.author,
        text=first.content if first else "",
        comment_id=first.id if first else "",
        url=details.url,
        title=str(details.title or ""),
    )


def _has_comment(events: list[Any], text: str) -> bool:
    """Whether a comment of these words follows the last commit."""
    last = max((n for n, event in enumerate(events) if isinstance(event, DiscussionCommit)), default=-1)
    return any(isinstance(e, DiscussionComment) and e.content.strip() == text.strip() for e in events[last + 1 :])
