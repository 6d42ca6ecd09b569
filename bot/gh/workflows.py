"""GitHub Actions from outside: a workflow looked at, started, and its runs followed to what they left behind."""

from __future__ import annotations

import io
import re
import time
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import requests
import yaml
from github import Auth, Github, GithubException, UnknownObjectException
from github.Repository import Repository
from github.Workflow import Workflow
from github.WorkflowRun import WorkflowRun
from requests.adapters import Retry  # type: ignore[attr-defined]  # urllib3's

from bot.errors import Forbidden, NotFound, Refused, Usage
from bot.gh.answers import asking, date_of, message_of
from bot.untrusted.redact import know

READ, WRITE, SEND = "Actions: read", "Actions: read and write", "Contents: read and write"
SLACK = 86_400.0  # seconds that a run may have begun before we believe it was sent: clocks are wrong, and set right
MOST_RUNS = 1_000  # GitHub lists no more
MOST_ARTIFACTS = 500
MOST_BYTES = 1 << 20  # of an outcome, packed or not; a real one has less than two thousand
MOST_LOG = 64 << 20
SECONDS = 30  # until a silent GitHub counts as away
STAMP = re.compile(r"^\ufeff?\d{4}-\d\d-\d\dT[\d:.]+Z ")


@dataclass(frozen=True, kw_only=True)
class WorkflowFile:
    """A workflow as its file at a ref has it. `triggers`: what starts it, by event, with what it says of each; None: the token may
    not read the file. `run_name`: how it names its runs, "" where it does not."""

    repo: str
    name: str
    ref: str
    triggers: Mapping[str, Mapping[str, Any]] | None
    run_name: str

    def inputs(self, event: str) -> frozenset[str]:
        """The inputs that an event may carry."""
        return frozenset(_mapping(((self.triggers or {}).get(event) or {}).get("inputs")))


@dataclass(frozen=True, kw_only=True)
class ActionsRun:
    """One run. `status`: queued, in_progress, completed …; `conclusion`: success, failure, cancelled …, "" until it has one.
    `title`: as its workflow's run-name makes it."""

    id: int
    url: str
    title: str = ""
    status: str = "queued"
    conclusion: str = ""


class Workflows:
    """The workflows of one repository. Every method raises Outside (see `bot.gh.answers`), or what it says."""

    def __init__(self, *, token: str, repo: str, api_url: str) -> None:
        """`repo` is owner/name; `api_url` as in GITHUB_API_URL, so that GitHub Enterprise works too."""
        know(token)
        # Reads are tried again at once; what starts a run never is, and a limit is left to the caller, who can wait for hours.
        retry = Retry(
            total=2, backoff_factor=0.2, allowed_methods={"GET"}, status_forcelist=(502, 503, 504),
            respect_retry_after_header=False, raise_on_status=False,
        )  # fmt: skip
        self._client = Github(
            auth=Auth.Token(token),
            base_url=api_url.rstrip("/"),
            user_agent="adapter-merge",
            retry=retry,
            timeout=SECONDS,
            per_page=100,
            lazy=True,
            seconds_between_requests=0,
            seconds_between_writes=0,
        )
        self.repo = repo

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def look(self, workflow: str, ref: str | None) -> WorkflowFile:
        """The workflow, by its file's name. `ref`: None is the repo's default branch. Raises NotFound where there is none, Refused
        where it or its repo does not run, Usage for a ref that is none."""
        repo = self._fresh()
        with asking(f"look at {workflow} of {self.repo}", READ):
            if repo.archived:
                raise Refused(
                    f"The GitHub repo {self.repo} is archived.", remedy="Unarchive it on GitHub, or name another repo."
                )
            try:
                state, path = (known := repo.get_workflow(workflow)).state, known.path
            except UnknownObjectException as error:
                raise NotFound(
                    f"{self.repo} has no workflow {workflow} that this token sees.",
                    remedy=f"Name its file with --workflow, as it lies in .github/workflows, and give the token {READ}.",
                ) from error
        if state != "active":
            raise Refused(
                f"The workflow {workflow} of {self.repo} is disabled ({state}).",
                remedy=f"Enable it on the repo's page: Actions, {workflow}, Enable workflow.",
            )
        ref = ref or repo.default_branch
        document = self._document(repo, path, ref)
        triggers = None if document is None else _triggers(document)
        run_name = "" if document is None else str(document.get("run-name", ""))
        return WorkflowFile(repo=self.repo, name=workflow, ref=ref, triggers=triggers, run_name=run_name)

    def dispatch(self, workflow: str, ref: str | None, inputs: Mapping[str, str]) -> ActionsRun | None:
        """Start it by a workflow_dispatch. None: GitHub took it, and does not say which run that is. Raises Unanswered where it
        may run or not, Refused for what GitHub does not take."""
        repo = self._fresh()
        started = repo.get_workflow(workflow)
        with asking(f"start {workflow} of {self.repo}", WRITE, starts=True):
            run = self._start(workflow, started, ref or repo.default_branch, inputs, details=True)
            # What else its record would tell is not asked for: it may not be shown yet.
            return ActionsRun(id=int(run.id), url=str(run.html_url)) if isinstance(run, WorkflowRun) else None

    def _start(
        self, workflow: str, started: Workflow, ref: str, inputs: Mapping[str, str], *, details: bool
    ) -> WorkflowRun | bool:
        try:
            if details:
                return started.create_dispatch(ref, dict(inputs), throw=True, return_run_details=True)
            return started.create_dispatch(ref, dict(inputs), throw=True)
        except GithubException as error:
            if error.status != 422:
                raise
            if details and "return_run_details" in message_of(error):
                # A server that does not know the parameter, and has started nothing.
                return self._start(workflow, started, ref, inputs, details=False)
            raise _not_taken(error, workflow, self.repo) from error

    def send_event(self, event: str, payload: Mapping[str, Any]) -> None:
        """Send a repository_dispatch of type `event`. Raises Unanswered and Refused as `dispatch` does."""
        repo = self._fresh()
        with asking(f"send {event} to {self.repo}", SEND, starts=True):
            try:
                # Not by create_repository_dispatch, which says of any failure only that there was one.
                repo.requester.requestJsonAndCheck(
                    "POST", f"{repo.url}/dispatches", input={"event_type": event, "client_payload": dict(payload)}
                )
            except GithubException as error:
                if error.status != 422:
                    raise
                raise _not_taken(error, event, self.repo) from error

    def runs(self, workflow: str, event: str, since: float) -> Iterator[ActionsRun]:
        """Its runs by this event, the newest first, from a day before `since` (seconds since the epoch, by this machine's clock)."""
        repo = self._fresh()
        ahead = (date_of(repo.raw_headers) or time.time()) - time.time()
        begun = datetime.fromtimestamp(max(0.0, since + ahead - SLACK), UTC)
        with asking(f"list the runs of {workflow} of {self.repo}", READ):
            listed = repo.get_workflow(workflow).get_runs(event=event, created=f">={begun:%Y-%m-%dT%H:%M:%SZ}")
            for run in islice(listed, MOST_RUNS):
                yield _run(run)

    def run(self, id: int) -> ActionsRun:
        """One run as it stands."""
        with asking(f"look at run {id} of {self.repo}", READ):
            return _run(self._repo().get_workflow_run(id))

    def artifact(self, id: int, name: str, member: str) -> bytes | None:
        """The file `member` of the artifact `name` that run `id` left; None where there is no such thing, or it is no small file.

        Whoever may change the workflow chooses these bytes: nothing is unpacked to the disk, and no more is read than is asked for.
        """
        with asking(f"read what run {id} of {self.repo} left", READ):
            listed = self._repo().get_workflow_run(id).get_artifacts()
            named = (each for each in islice(listed, MOST_ARTIFACTS) if each.name == name and not each.expired)
            newest = max(named, key=lambda each: each.id, default=None)  # of a run that was repeated, the last
            if newest is None or newest.size_in_bytes > MOST_BYTES:
                return None
            packed = b"".join(self._behind(newest.archive_download_url, MOST_BYTES))
        return _member(packed, member)

    def log_end(self, id: int, lines: int) -> list[str]:
        """The last lines that a run's job printed: of the one that failed, where one did. None yet: []."""
        with asking(f"read the log of run {id} of {self.repo}", READ):
            jobs = list(islice(self._repo().get_workflow_run(id).jobs(), 256))
            jobs.sort(key=lambda job: job.conclusion == "failure")
            if not jobs:
                return []
            try:
                pieces = self._behind(f"{jobs[-1].url}/logs", MOST_LOG)
                return _last_lines(pieces, lines)
            except GithubException as error:
                if error.status in (404, 410):  # not yet, or no more
                    return []
                raise

    def _repo(self) -> Repository:
        return self._client.get_repo(self.repo)

    def _fresh(self) -> Repository:
        """The repo as it is called today. Its name is kept: GitHub redirects reads, and drops what is to be started."""
        with asking(f"look up the GitHub repo {self.repo}", "Metadata: read"):
            repo = self._repo()
            self.repo = str(repo.raw_data["full_name"])
            return repo

    def _document(self, repo: Repository, path: str, ref: str) -> Mapping[str, Any] | None:
        """The workflow's file; None where the token may not read it, which it need not."""
        try:
            with asking(f"read {path} of {self.repo}", "Contents: read"):
                content = repo.get_contents(path, ref)
                text = "" if isinstance(content, list) else content.decoded_content.decode(errors="replace")
        except (NotFound, Forbidden) as error:
            cause = error.__cause__
            if isinstance(cause, GithubException) and "for the ref" in message_of(cause):
                raise Usage(f"{self.repo} has no branch or tag {ref}.", remedy="Name one with --ref.") from error
            return None
        try:
            return _mapping(yaml.load(text, Loader=yaml.BaseLoader))  # as text, so that `on` stays a word
        except yaml.YAMLError as error:
            raise Refused(
                f"{path} of {self.repo} is no YAML at {ref}.", remedy="Mend the workflow, or name another ref."
            ) from error

    def _behind(self, address: str, most: int) -> Iterator[bytes]:
        """The bytes that an address of the API redirects to, up to `most`. They lie on another host, which gets no token."""
        headers, _ = self._client.requester.requestJsonAndCheck("GET", address)
        with requests.Session() as session:
            session.auth = lambda request: request  # nor what a .netrc has
            with session.get(str(headers["location"]), stream=True, timeout=SECONDS) as answer:
                answer.raise_for_status()
                for piece in answer.iter_content(1 << 16):
                    most -= len(piece)
                    if most < 0:
                        return
                    yield piece


def _not_taken(error: GithubException, what: str, repo: str) -> Refused:
    """What GitHub says of a request that it understood and does not take, with the way out."""
    words = message_of(error)
    for key, remedy in NOT_TAKEN.items():
        if key in words:
            return Refused(f"GitHub does not start {what} of {repo}: {words[:200]}", remedy=remedy)
    return Refused(
        f"GitHub does not start {what} of {repo}: {words[:200]}", remedy="Mend the workflow, then dispatch it again."
    )


# What GitHub's answers begin with, or hold, and what to do.
NOT_TAKEN = {
    "workflow_dispatch": "Add `workflow_dispatch` with its inputs to the workflow's `on:` at that ref, as merge.yml has it.",
    "Unexpected inputs": "Add these inputs to the workflow at that ref, as merge.yml has them, or leave the options out.",
    "Required input": "Give it as an option of the run, or make it optional in the workflow.",
    "No ref": "Name a branch or tag that exists with --ref.",
}


def _run(run: WorkflowRun) -> ActionsRun:
    return ActionsRun(
        id=int(run.id),
        url=str(run.html_url),
        title=str(run.raw_data.get("display_title") or run.raw_data.get("name") or ""),
        status=str(run.raw_data.get("status") or "queued"),
        conclusion=str(run.raw_data.get("conclusion") or ""),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _triggers(document: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """`on:`, which may be one word, a list, or a mapping."""
    on = document.get("on")
    if isinstance(on, dict):
        return {str(event): _mapping(details) for event, details in on.items()}
    return {str(event): {} for event in (on if isinstance(on, list) else [on])}


def _member(packed: bytes, member: str) -> bytes | None:
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive, archive.open(member) as opened:
            content = opened.read(MOST_BYTES + 1)  # whatever size it claims to have
    except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError, EOFError, OSError, zlib.error):
        return None
    return content if len(content) <= MOST_BYTES else None


def _last_lines(pieces: Iterator[bytes], lines: int) -> list[str]:
    kept: deque[bytes] = deque(maxlen=lines)
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        kept.extend(whole)
        rest = rest[-MOST_BYTES:]
    if rest:
        kept.append(rest)
    return [STAMP.sub("", line.decode(errors="replace").rstrip("\r"))[:2000] for line in kept]
