"""Runs on GitHub Actions: merge.yml, or a workflow that takes the same inputs, started through GitHub's API.

The request's id is an input of the run and the end of its name (the workflow's run-name puts it there), so that a run is found again
whose start nobody wrote down. What came of it is in an artifact, `adapter-merge-outcome-<id>`: the action's outputs as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from bot.dispatch.backends import Busy, Unsure
from bot.dispatch.command import revision_of
from bot.dispatch.records import Fate, Run, RunRequest, Status
from bot.errors import AdapterMergeError, Outside, Refused, Usage
from bot.gh.answers import RateLimited, Unanswered
from bot.gh.workflows import ActionsRun, WorkflowFile, Workflows
from bot.hub.retries import rest
from bot.untrusted import strict_json

Event = Literal["workflow_dispatch", "repository_dispatch"]
EVENT_TYPE = "adapter-tag"
NEEDED = ("adapter", "adapter-revision", "request-id")
CARRIES_ID = re.compile(r"request[-_]id")
LOOKS = (1.0, 2.0, 4.0)  # seconds before each look for a run that GitHub did not name
OUTCOME, MEMBER = "adapter-merge-outcome", "outcome.json"
# How an outcome's status ends here, with the exit code that the command line would have.
ENDS: Mapping[str, tuple[Status, int]] = {
    "published": ("published", 0), "unchanged": ("unchanged", 0), "dry-run": ("dry-run", 0), "refused": ("refused", 3),
    "not-verified": ("not-verified", 4), "failed": ("failed", 5),
}  # fmt: skip
# Conclusions of runs that never came to the merge, or were ended.
CONCLUSIONS = {
    "cancelled": ("The run was cancelled on GitHub.", "Dispatch it again, if that was not meant."),
    "skipped": ("GitHub skipped the run's job.", "Look at the condition (`if:`) of the workflow's job."),
    "timed_out": ("The run took longer than its time limit.", "Give the workflow a longer timeout-minutes."),
    "startup_failure": ("GitHub could not start the run.", "Look at the run's page: the workflow's file has a fault."),
    "action_required": ("The run waits for somebody's approval.", "Approve it on its page."),
    "stale": ("No runner took the run in time.", "Check that a runner with the workflow's labels is online."),
}


class GitHubBackend:
    """A backend as `bot.dispatch.backends` describes it. `hub`: the Hub's address, for links to what was published."""

    NAME = "github"
    SHOWN_AFTER = 120.0  # seconds; GitHub shows a run within a few
    LOOK_EVERY = 15.0  # a look costs one of 5,000 calls an hour

    def __init__(self, workflows: Workflows, *, workflow: str, ref: str | None, event: Event, hub: str) -> None:
        """Raises Usage for a ref with an event that has none."""
        if event == "repository_dispatch" and ref:
            raise Usage("A repository_dispatch always runs the default branch's workflow.", remedy="Leave --ref out.")
        self.workflows, self.workflow, self.ref, self.event, self.hub = workflows, workflow, ref, event, hub

    def check(self) -> None:
        """Raises Usage for a workflow that would not take a request, and what `Workflows.look` raises."""
        file = self.workflows.look(self.workflow, self.ref)
        if file.triggers is None:  # a token for Actions alone may not read it
            return
        if self.event not in file.triggers:
            raise Usage(
                f"{file.name} of {file.repo} has no {self.event} at {file.ref}.",
                remedy="Add it to the workflow's `on:`, as merge.yml has it, or choose another --event.",
            )
        if self.event == "workflow_dispatch":
            unknown = [name for name in NEEDED if name not in file.inputs(self.event)]
            if unknown:
                raise Usage(
                    f"{file.name} of {file.repo} does not know the input {unknown[0]} at {file.ref}.",
                    remedy="Add it to the workflow's `workflow_dispatch:`, or take this version's merge.yml.",
                )
        elif not self._is_heard(file):
            raise Usage(
                f"{file.name} of {file.repo} does not run on the event type {EVENT_TYPE}.",
                remedy=f"Add `types: [{EVENT_TYPE}]` to its `repository_dispatch:`.",
            )
        if not CARRIES_ID.search(file.run_name):
            raise Usage(
                f"The run-name of {file.name} of {file.repo} does not carry the request's id, so that a run cannot be found again.",
                remedy="Give it the run-name of this version's merge.yml.",
            )

    def _is_heard(self, file: WorkflowFile) -> bool:
        types = (file.triggers or {})[self.event].get("types", EVENT_TYPE)
        return EVENT_TYPE in (types if isinstance(types, list) else [types])

    def send(self, request: RunRequest) -> Run:
        """Start the workflow, and name the run that this made."""
        order = request.order
        if order.kind != "merge":
            raise Refused(
                f"A workflow on GitHub merges, and {order.kind} was asked for.",
                remedy="Ask for it by `--backend local`.",
            )
        revision = revision_of(order) or order.sha or ""
        try:
            if self.event == "workflow_dispatch":
                inputs = {"adapter": order.adapter, "adapter-revision": revision, "request-id": request.id}
                started = self.workflows.dispatch(self.workflow, self.ref, dict(order.options) | inputs)
            else:
                payload = {"adapter": order.adapter, "revision": revision, "request_id": request.id}
                self.workflows.send_event(EVENT_TYPE, payload | {"options": dict(order.options)})
                started = None
            return _as_run(started) if started else self._started(request)
        except (RateLimited, Unanswered) as error:
            raise _for_the_dispatcher(error) from error

    def _started(self, request: RunRequest) -> Run:
        """The run of what was just sent, where GitHub did not name it."""
        for pause in LOOKS:
            rest(pause)
            try:
                run = self.find(request)
            except Outside as error:
                raise Unsure(
                    f"It was sent, and its run cannot be looked for: {error.what}", remedy=error.remedy
                ) from error
            if run is not None:
                return run
        raise Unsure("It was sent, and GitHub does not show its run yet.", remedy="It is looked for again soon.")

    def find(self, request: RunRequest) -> Run | None:
        """The run whose name ends with the request's id."""
        try:
            for run in self.workflows.runs(self.workflow, self.event, request.begun):
                if run.title.split()[-1:] == [request.id]:
                    return _as_run(run)
        except RateLimited as error:
            raise _for_the_dispatcher(error) from error
        return None

    def look(self, request: RunRequest) -> Fate:
        """Queued, running, or how it ended: by the outcome that it left, else by GitHub's conclusion."""
        id = _id(request)
        try:
            run = self.workflows.run(id)
            if run.status != "completed":
                return Fate(status="running" if run.status == "in_progress" else "queued")
            if run.conclusion == "action_required":  # it ends anew when somebody has approved it
                reason, remedy = CONCLUSIONS[run.conclusion]
                return Fate(status="queued", reason=reason, remedy=remedy)
            left = self.workflows.artifact(id, f"{OUTCOME}-{request.id}", MEMBER)
            outcome = _outcome(left)
            if outcome:
                return self._by_outcome(outcome, id)
            return self._by_conclusion(run)
        except RateLimited as error:
            raise _for_the_dispatcher(error) from error

    def log(self, request: RunRequest, lines: int) -> list[str]:
        """The last lines of the job's log."""
        try:
            return self.workflows.log_end(_id(request), lines)
        except AdapterMergeError:
            return []

    def _by_outcome(self, outcome: Mapping[str, str], id: int) -> Fate:
        status, code = ENDS[outcome["status"]]
        verdict = "verified" if outcome.get("verified") == "true" else ""
        if code:
            reason, remedy = self._complaint(id)
            return Fate(status=status, verdict=verdict, reason=reason, remedy=remedy, exit_code=code)
        return Fate(status=status, url=self._published(outcome), verdict=verdict, exit_code=0)

    def _published(self, outcome: Mapping[str, str]) -> str:
        """The pull request, else the repo at the merge's commit; as the run is not ours, only a link to this Hub."""
        pull, repo, revision = (outcome.get(name, "") for name in ("pr-url", "repo", "revision"))
        if re.fullmatch(rf"{re.escape(self.hub)}/[\w.-]+/[\w.-]+/discussions/\d+", pull):
            return pull
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            return ""
        return f"{self.hub}/{repo}" + (f"/tree/{revision}" if re.fullmatch(r"[0-9a-f]{40}", revision) else "")

    def _by_conclusion(self, run: ActionsRun) -> Fate:
        if run.conclusion in ("success", "neutral"):
            # A workflow of somebody's own may leave no outcome: it is not said to be proven.
            return Fate(
                status="published",
                reason="The run ended well, and left no outcome.",
                remedy="Its page says more.",
                exit_code=0,
            )
        if run.conclusion in CONCLUSIONS:
            reason, remedy = CONCLUSIONS[run.conclusion]
        else:
            reason, remedy = self._complaint(run.id)
        return Fate(status="failed", reason=reason, remedy=remedy, exit_code=5)

    def _complaint(self, id: int) -> tuple[str, str]:
        """The last error that the job told, which names the way out itself."""
        try:
            lines = self.workflows.log_end(id, 400)
        except AdapterMergeError:
            lines = []
        errors = [line.removeprefix("##[error]") for line in lines if line.startswith("##[error]")]
        # What the runner adds to any script that failed says nothing.
        errors = [line for line in errors if not line.startswith("Process completed with exit code")]
        return (errors[-1][:500] if errors else "The run failed."), "Its page has the log."


def _for_the_dispatcher(error: RateLimited | Unanswered) -> AdapterMergeError:
    if isinstance(error, RateLimited):
        return Busy(error.what, remedy=error.remedy, seconds=error.seconds)
    return Unsure(error.what, remedy=error.remedy)


def _as_run(run: ActionsRun) -> Run:
    return Run(id=str(run.id), url=run.url)


def _id(request: RunRequest) -> int:
    if request.run is None or not request.run.id.isdigit():
        raise Outside("The request has no run on GitHub.", remedy="Give the server the backend that sent it.")
    return int(request.run.id)


def _outcome(content: bytes | None) -> Mapping[str, str]:
    """The action's outputs; {} where they are not what the action writes."""
    try:
        outcome = strict_json.loads(content or b"{}")
    except ValueError:
        return {}
    plain = isinstance(outcome, dict) and all(isinstance(value, str) for value in outcome.values())
    return outcome if plain and outcome.get("status") in ENDS else {}
