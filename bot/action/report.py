"""Where else a run is reported, each on request only. Whatever fails here is a warning: the model is published already."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bot.action import summary
from bot.action.hub_comment import tell_adapters
from bot.action.input_names import as_inputs
from bot.action.inputs import adapters_of
from bot.action.state import CHECKSUMS, StateStore
from bot.errors import AdapterMergeError
from bot.events import Note
from bot.records import Request
from bot.report_document import NAME as DOCUMENT
from bot.report_document import PAGE, CheckResult

if TYPE_CHECKING:
    from bot.action.phases import RunContext
    from bot.gh import Annotation, GitHub

NAME = "adapter-merge"
MARK = "<!-- adapter-merge:report:{} -->"  # one comment for each workflow and adapter
LEVELS: dict[str, Literal["notice", "warning", "failure"]] = {"warn": "warning", "fail": "failure", "skip": "warning"}


def send(run: RunContext) -> None:
    """Report everywhere that was asked for."""
    wanted = run.inputs.report - {"summary"}
    if "hub-comment" in wanted:
        _warn_only(run, lambda: tell_adapters(run))
    reports = [report for name, report in REPORTS.items() if name in wanted]
    if not reports:
        return
    if not run.tokens.github or not run.event.repo:
        text = f"Nothing was reported as {', '.join(sorted(wanted & REPORTS.keys()))}: there is no github-token."
        run.emit(Note(text=f"{text} Pass `github-token: ${{{{ github.token }}}}`.", level="warning"))
        return
    from bot.gh import GitHub

    github = GitHub(token=run.tokens.github, repo=run.event.repo, api_url=run.event.api_url)
    for report in reports:
        _warn_only(run, lambda report=report: report(run, github))  # type: ignore[misc]
    github.close()


def _warn_only(run: RunContext, call: Callable[[], None]) -> None:
    try:
        call()
    except AdapterMergeError as error:
        run.emit(Note(text=f"{error.what} {error.remedy}", level="warning"))


# --- the reports --------------------------------------------------------------------------------------------------


def _check_run(run: RunContext, github: GitHub) -> None:
    from bot.gh import CheckRun

    check = CheckRun(
        name=_name(run),
        sha=run.event.sha,
        conclusion=_conclusion(run.store),
        title=_title(run.store),
        summary=summary.sentences(run.store.state.failure) if run.store.state.failure else _title(run.store),
        text=summary.whole(run.store),
        annotations=tuple(_annotations(run)),
        details_url=_link(run),
        external_id=",".join(job.fingerprint for job in run.store.state.jobs),
    )
    run.emit(Note(text=f"Check run: {github.add_check_run(check)}"))


def _comment(run: RunContext, github: GitHub) -> None:
    if run.event.pull is None:
        run.emit(Note(text="This event belongs to no pull request, so that no comment was written."))
        return
    link = f"\n<sub>[The run]({run.event.run_url})</sub>\n" if run.event.run_url else ""
    url = github.put_comment(run.event.pull, MARK.format(_key(run)), summary.whole(run.store) + link)
    run.emit(Note(text=f"Comment: {url}"))


def _release(run: RunContext, github: GitHub) -> None:
    if run.event.tag is None:
        run.emit(Note(text="This event is no tag's, so that no release was written."))
        return
    jobs = [job for job in run.store.state.jobs if job.verified]
    if run.store.state.failure or not jobs:
        run.emit(Note(text="Nothing was proven, so that no release was written."))
        return
    assets: dict[str, Path] = {}
    for job in jobs:
        prefix = f"{(job.target or job.adapter).strip('./').replace('/', '--')}-" if len(jobs) > 1 else ""
        for file in (DOCUMENT, PAGE, CHECKSUMS):
            path = run.store.report_dir(job) / file
            if path.exists():
                assets[prefix + file] = path
    url = github.put_release(run.event.tag, MARK.format(_key(run)), summary.whole(run.store), assets)
    run.emit(Note(text=f"Release: {url}"))


def _status(run: RunContext, github: GitHub) -> None:
    failure = run.store.state.failure
    answered = failure is not None and failure.exit_code in (3, 4)
    state: Literal["success", "failure", "error"] = "success" if failure is None else "failure" if answered else "error"
    github.set_status(run.event.sha, state, context=_name(run), text=_title(run.store), url=_link(run))


REPORTS: dict[str, Callable[[RunContext, GitHub], None]] = {
    "check-run": _check_run,
    "comment": _comment,
    "release": _release,
    "status": _status,
}


# --- words --------------------------------------------------------------------------------------------------------


def _annotations(run: RunContext) -> list[Annotation]:
    """What went wrong, and every finding that did not simply pass."""
    from bot.gh import Annotation

    path = file_of(run.event.workflow, [request.adapter.folder for request in run.inputs.requests]) or ".github"
    annotations = []
    for what, remedy in run.store.state.failure.sentences if run.store.state.failure else ():
        text = as_inputs(f"{what} {remedy}")
        annotations.append(Annotation(path=path, level="failure", title=NAME, message=text))
    for job in run.store.state.jobs:
        document = run.store.document(job)
        for check in document.checks if document else ():
            level = LEVELS.get(str(check.status))
            if level is not None:
                message = _finding(check)
                annotations.append(Annotation(path=path, level=level, title=str(check.id), message=message))
    return annotations


def _finding(check: CheckResult) -> str:
    worst = "\n".join(map(str, check.worst or ()))
    measured = f"measured {check.measured}, allowed {check.allowed or 'nothing else'}"
    return f"{check.why or check.status} ({measured})" + (f"\n{worst}" if worst else "")


def file_of(workflow: str, folders: list[Path | None]) -> str:
    """The file that annotations point at: the adapter's config where it is in this repo, else the workflow."""
    workspace = Path(os.environ.get("GITHUB_WORKSPACE") or ".").resolve()
    for folder in folders:
        path = folder.resolve() / "adapter_config.json" if folder else None
        if path is not None and path.is_relative_to(workspace):
            return path.relative_to(workspace).as_posix()
    return workflow


def _conclusion(store: StateStore) -> Literal["success", "failure", "neutral"]:
    if store.state.failure is not None:
        return "failure"
    return "neutral" if all(job.status == "dry-run" for job in store.state.jobs) else "success"


def _title(store: StateStore) -> str:
    failure, jobs = store.state.failure, store.state.jobs
    if failure is None and len(jobs) > 1:
        return f"✓ {len(jobs)} adapters: " + ", ".join(f"{job.target or job.adapter} {job.status}" for job in jobs)
    text = summary.headline(store.job, failure).replace("\\", "")
    return f"{text}. {as_inputs(failure.sentences[0][0])}" if failure else text


def _name(run: RunContext) -> str:
    requests = run.inputs.requests
    return NAME if len(requests) > 1 else f"{NAME} ({_names(requests[0])})"


def _key(run: RunContext) -> str:
    names = ",".join(_names(request) for request in run.inputs.requests)
    return f"{run.event.workflow}:{names}".replace("--", "-").replace(">", "")


def _names(request: Request) -> str:
    return " + ".join(ref.as_repo or ref.text for ref in adapters_of(request))


def _link(run: RunContext) -> str | None:
    jobs = run.store.state.jobs
    done = jobs[0].publication if len(jobs) == 1 and run.store.state.failure is None else None
    return (done.link if done else None) or run.event.run_url
