"""Which backend runs the merges, and what is asked of it: every option once, as the command line has them. To add a backend, add its
line to BACKENDS."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bot.dispatch.backends import Backend
from bot.errors import Forbidden, NotFound, Outside, Usage
from bot.options import option

if TYPE_CHECKING:
    from bot.hub import Hub

WORKFLOW = "merge.yml"


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """Where runs run."""

    backend: Literal["local", "github", "jobs"] = option(
        "Where merges run: local (on this machine, one at a time), github (a workflow on GitHub Actions) or jobs (Hugging Face Jobs).",
        "local",
    )
    github_repo: str | None = option("With github: the repo whose workflow runs.", metavar="OWNER/NAME")
    workflow: str | None = option("With github: the workflow's file. Default: merge.yml.", metavar="NAME")
    ref: str | None = option(
        "With github: the branch or tag whose workflow runs. Default: the default branch.", metavar="REF"
    )
    event: Literal["workflow_dispatch", "repository_dispatch"] = option(
        "With github: how the workflow is started.", "workflow_dispatch"
    )
    image: str | None = option(
        "With jobs: the image that runs. Default: this version's, with CUDA where the machine has a GPU.",
        metavar="IMAGE",
    )
    flavor: str | None = option("With jobs: the machine. Default: the cheapest that the plan fits on.", metavar="NAME")
    timeout: str | None = option(
        "With jobs: how long a run may take, as 90m or 6h. Default: by what the plan says is moved.", metavar="TIME"
    )
    namespace: str | None = option(
        "With jobs: the account that runs and pays. Default: the token's own.", metavar="NAME"
    )


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a backend may need besides its options. `environment`: where its token stands."""

    state: Path
    hub: Hub
    environment: Mapping[str, str]


def _local(options: BackendOptions, around: Surroundings) -> Backend:
    from bot.dispatch.backends.local import LocalBackend

    return LocalBackend(around.state.with_name(f"{around.state.name}.runs"))


def _github(options: BackendOptions, around: Surroundings) -> Backend:
    from bot.dispatch.backends.github import GitHubBackend
    from bot.gh.workflows import Workflows

    repo, token = options.github_repo or "", around.environment.get("GITHUB_TOKEN", "")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise Usage(
            f"{repo!r} is no repo on GitHub." if repo else "The backend github needs a repo whose workflow it starts.",
            remedy="Name it with --github-repo owner/name.",
        )
    if not token:
        raise Usage(
            "The backend github needs a token: GITHUB_TOKEN is not set.",
            remedy="Set it to a fine-grained token of that repo: Actions (read and write), or with repository_dispatch Contents "
            "(read and write) and Actions (read).",
        )
    address = around.environment.get("GITHUB_API_URL") or "https://api.github.com"
    return GitHubBackend(
        Workflows(token=token, repo=repo, api_url=address),
        workflow=options.workflow or WORKFLOW,
        ref=options.ref,
        event=options.event,
        hub=around.hub.address,
    )


def _jobs(options: BackendOptions, around: Surroundings) -> Backend:
    from bot.dispatch.backends.jobs import JobSettings, jobs_backend, seconds_in

    timeout = seconds_in(options.timeout) if options.timeout else None
    settings = JobSettings(image=options.image, flavor=options.flavor, timeout=timeout, namespace=options.namespace)
    return jobs_backend(settings, around.environment)


BACKENDS: dict[str, Callable[[BackendOptions, Surroundings], Backend]] = {
    "local": _local,
    "github": _github,
    "jobs": _jobs,
}


def backend_of(options: BackendOptions, around: Surroundings, away: Callable[[Outside], None] | None = None) -> Backend:
    """The backend, checked: raises Usage, Refused or Outside where a request could not be sent. `away` hears, in place of whoever
    called, that the service cannot be asked now: the check is still to be made then."""
    backend = BACKENDS[options.backend](options, around)
    try:
        backend.check()
    except Outside as error:
        if away is None or isinstance(error, Forbidden | NotFound):
            raise
        away(error)
    return backend


def state_file(environment: Mapping[str, str]) -> Path:
    """Where the state lies if nobody says: XDG's folder for what outlives a restart (specifications.freedesktop.org/basedir)."""
    home = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "adapter-merge" / "bot.db"
