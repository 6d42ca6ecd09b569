"""One repository on GitHub, and the five things that a run writes there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from github import Auth, Github, GithubRetry, UnknownObjectException
from github.GithubObject import NotSet
from github.GitRelease import GitRelease
from github.IssueComment import IssueComment

from bot.gh.checks import CheckRun, cut
from bot.gh.errors import translate_errors
from bot.untrusted.redact import redact

PATIENCE = 60.0  # seconds; a rate limit that asks for more becomes a warning instead
OURS = ("OWNER", "MEMBER", "COLLABORATOR")


class GitHub:
    """A connection to one repository. Nothing is asked of it until a method is called. Each raises Outside."""

    def __init__(self, *, token: str, repo: str, api_url: str) -> None:
        """`repo` is owner/name; `api_url` as in GITHUB_API_URL, so that GitHub Enterprise works too."""
        retry = GithubRetry(total=3, backoff_factor=0.5, max_rate_limit_wait=PATIENCE)
        self._client = Github(
            auth=Auth.Token(token),
            base_url=api_url.rstrip("/"),
            user_agent="adapter-merge",
            retry=retry,
            timeout=30,
            lazy=True,  # a repo, an issue and a commit are known by their names: no request to look them up
            seconds_between_requests=0,
            seconds_between_writes=0.2,  # GitHub asks for a pause; a run writes only a handful of times
        )
        self._repo = self._client.get_repo(repo)

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def add_check_run(self, check: CheckRun) -> str:
        """A finished check run with all its annotations; its URL."""
        first, *others = check.batches()
        with translate_errors("add the check run", "checks"):
            made = self._repo.create_check_run(
                check.name,
                check.sha,
                status="completed",
                conclusion=check.conclusion,
                external_id=check.external_id,
                output=first,
                details_url=check.details_url or NotSet,
            )
            for output in others:
                made.edit(output=output)
        return made.html_url

    def put_comment(self, number: int, marker: str, body: str) -> str:
        """The one comment on a pull request that begins with `marker`: edited in place, or new; its URL."""
        text = cut(f"{marker}\n{body}")
        with translate_errors(f"comment on pull request {number}", "pull-requests"):
            issue = self._repo.get_issue(number)
            for comment in issue.get_comments():
                if (comment.body or "").startswith(marker) and _is_ours(comment):
                    if comment.body != text:
                        comment.edit(text)
                    return comment.html_url
            return issue.create_comment(text).html_url

    def put_release(self, tag: str, marker: str, note: str, assets: Mapping[str, Path]) -> str:
        """The tag's release with our section in its text and these files as assets, older ones replaced; its URL."""
        with translate_errors(f"write the release of {tag}", "contents"):
            try:
                release = self._repo.get_release(tag)
            except UnknownObjectException:
                release = self._repo.create_git_release(
                    tag, name=tag, message=_section("", marker, note), make_latest="legacy"
                )
            else:
                body = _section(release.body or "", marker, note)
                if body != release.body:
                    release = release.update_release(
                        release.name or tag, body, draft=release.draft, prerelease=release.prerelease
                    )
            self._replace_assets(release, assets)
            return release.html_url

    def _replace_assets(self, release: GitRelease, assets: Mapping[str, Path]) -> None:
        for there in release.get_assets():
            if there.name in assets:
                there.delete_asset()
        for name, path in assets.items():
            release.upload_asset(str(path), label=name, name=name, content_type="application/octet-stream")

    def set_status(
        self, sha: str, state: Literal["success", "failure", "error"], *, context: str, text: str, url: str | None
    ) -> None:
        """A commit status; GitHub shows 140 characters of `text`."""
        text = redact(text)
        short = text if len(text) <= 140 else text[:139] + "…"
        with translate_errors("set the commit status", "statuses"):
            self._repo.get_commit(sha).create_status(
                state, description=short, context=context, target_url=url or NotSet
            )


def _is_ours(comment: IssueComment) -> bool:
    """Anybody can write our marker; only a bot's comment or a collaborator's is taken over."""
    user = comment.user
    return (user is not None and user.type == "Bot") or comment.author_association in OURS


def _section(body: str, marker: str, note: str) -> str:
    """`body` with our part, between two hidden marks, replaced or added at its end."""
    end = marker.replace("<!-- ", "<!-- /", 1)
    ours = f"{marker}\n{redact(note)}\n{end}"
    before, mark, rest = body.partition(marker)
    if not mark:
        return f"{body.rstrip()}\n\n{ours}".lstrip()
    after = rest.partition(end)[2] if end in rest else ""
    return before + ours + after
