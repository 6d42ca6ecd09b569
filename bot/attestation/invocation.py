"""Who made a merge, and which run of theirs it was: a workflow of GitHub Actions, or a machine that nobody vouches for."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from bot.attestation.statement import PAGE

BY_HAND = f"{PAGE}#a-machine-of-your-own"


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """`builder`: a URI; `id`: of this run alone; `url`: where the run can be looked at."""

    builder: str
    id: str
    url: str | None = None

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Invocation:
        """That of this process. A workflow is named as GitHub's own provenance names it: by its file and ref."""
        server, repo, run = (env.get(f"GITHUB_{name}", "") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID"))
        workflow = env.get("GITHUB_WORKFLOW_REF", "")
        if env.get("GITHUB_ACTIONS") != "true" or not (server and repo and run and workflow):
            return cls(builder=BY_HAND, id=f"urn:uuid:{uuid.uuid4()}")
        url = f"{server}/{repo}/actions/runs/{run}"
        attempt = env.get("GITHUB_RUN_ATTEMPT") or "1"
        return cls(builder=f"{server}/{workflow}", id=f"{url}/attempts/{attempt}", url=url)
