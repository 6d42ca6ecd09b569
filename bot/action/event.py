"""What made the workflow run, as far as it decides what a run may do and where it reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.records import Json

FORK = "the pull request comes from a fork, whose author the secrets of this repository are not for"
TARGET = "pull_request_target runs with this repository's secrets for a pull request that anybody may open"
FOREIGN_RUN = "the run that triggered this one belongs to a fork"
COMMENT = "a comment on a pull request started it, and what was checked out may be anybody's"
STRANGER = "somebody who is no owner, member or collaborator of this repository started it"
UNREADABLE = "the event cannot be read, so that nobody knows whose pull request it is"

# Anybody's, in a public repo.
SPOKEN = ("issue_comment", "issues", "discussion", "discussion_comment", "commit_comment")
OURS = ("OWNER", "MEMBER", "COLLABORATOR")


@dataclass(frozen=True, kw_only=True)
class WorkflowEvent:
    """`plan_only` is empty where the run may publish, else the reason why it may not."""

    repo: str  # owner/name on GitHub
    sha: str  # the commit that reports belong to
    tag: str | None  # the tag whose commit the job has
    # The same where it started the run; in the form of a dispatch, a tag chooses the workflow's file.
    pushed_tag: str | None
    pull: int | None
    run_url: str | None
    api_url: str
    workflow: str  # the workflow file's path in the repo
    plan_only: str


def read_event(env: Mapping[str, str]) -> WorkflowEvent:
    """The event of this environment; outside of Actions nearly all of it is empty."""
    name, payload = env.get("GITHUB_EVENT_NAME", ""), _payload(env.get("GITHUB_EVENT_PATH", ""))
    pull = _of(payload, "pull_request")
    issue = _of(payload, "issue")
    number = pull.get("number") or (issue.get("number") if issue.get("pull_request") else None)
    tag = _tag(env)
    server, repo, run = (env.get(f"GITHUB_{name}", "") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID"))
    return WorkflowEvent(
        repo=repo,
        sha=_of(pull, "head").get("sha") or env.get("GITHUB_SHA", ""),
        tag=tag,
        pushed_tag=None if name == "workflow_dispatch" else tag,
        pull=number if isinstance(number, int) else None,
        run_url=f"{server}/{repo}/actions/runs/{run}" if server and repo and run else None,
        api_url=env.get("GITHUB_API_URL") or "https://api.github.com",
        workflow=_workflow(env.get("GITHUB_WORKFLOW_REF", ""), repo),
        plan_only=_untrusted(name, payload),
    )


def _untrusted(name: str, payload: Json) -> str:
    if name == "pull_request_target":
        return TARGET
    if "pull_request" in payload:
        pull = _of(payload, "pull_request")
        head, base = _of(_of(pull, "head"), "repo"), _of(_of(pull, "base"), "repo")
        same = head.get("full_name") and head.get("full_name") == base.get("full_name")
        return "" if same else FORK  # a deleted fork has no repo any more
    if name.startswith("pull_request"):
        return UNREADABLE
    issue = _of(payload, "issue")
    if name == "issue_comment" and (issue.get("pull_request") or not issue):
        return COMMENT
    if name in SPOKEN:
        return "" if _speaker(payload).get("author_association") in OURS else STRANGER
    run = _of(payload, "workflow_run")
    if run:
        head, own = _of(run, "head_repository"), _of(payload, "repository")
        return "" if head.get("full_name") == own.get("full_name") else FOREIGN_RUN
    return UNREADABLE if name == "workflow_run" else ""


def _speaker(payload: Json) -> Json:
    """What was written, with what its author is to the repo: the comment, else the issue or discussion that it opened."""
    return next((entry for key in ("comment", "issue", "discussion") if (entry := _of(payload, key))), {})


def _payload(path: str) -> Json:
    try:
        payload = json.loads(Path(path).read_bytes()) if path else {}
    except (OSError, ValueError):  # no event is one that nothing is granted to
        return {}
    return payload if isinstance(payload, dict) else {}


def _of(payload: Json, key: str) -> Json:
    value: Any = payload.get(key)
    return value if isinstance(value, dict) else {}


def _tag(env: Mapping[str, str]) -> str | None:
    ref = env.get("GITHUB_REF", "")
    if ref.startswith("refs/tags/"):
        return ref.removeprefix("refs/tags/")
    return (env.get("GITHUB_REF_NAME") or None) if env.get("GITHUB_REF_TYPE") == "tag" else None


def _workflow(ref: str, repo: str) -> str:
    """`.github/workflows/x.yml` of `owner/name/.github/workflows/x.yml@refs/heads/main`."""
    return ref.partition("@")[0].removeprefix(f"{repo}/") if repo and ref.startswith(f"{repo}/") else ""
