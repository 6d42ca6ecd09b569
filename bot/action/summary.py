"""The run in Markdown: headline, plan, evidence, how to reproduce it. For the step's summary and for reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bot.action.input_names import as_inputs
from bot.action.state import Failure, Job, StateStore
from bot.card import evidence
from bot.records import Json, Ref, Role, Source
from bot.untrusted.markdown import cell, code, fenced
from bot.untrusted.redact import redact

MOST = 1_000_000  # bytes; GitHub drops a step's summary beyond 1 MiB
CUT = "\n\n… cut here: GitHub shows no more than 1 MiB. The whole report is the output `report-path`.\n"


def headline(job: Job | None, failure: Failure | None) -> str:
    """How it ended, in one line of Markdown without a heading's marks."""
    if failure is not None:
        words = {3: "Refused", 4: "Not verified", 6: "This machine cannot do it", 130: "Interrupted"}
        what = words.get(failure.exit_code, "Failed")
        return f"✗ {what}: {cell(job.adapter) if job else 'adapter-merge'}"
    assert job is not None
    found = job.publication or {}
    if job.status == "published" and found.get("how") == "pr":
        return f"✓ Verified and proposed: pull request #{found['pr_number']} on {cell(found['repo'])}"
    if job.status == "published":
        tag = f", tag {cell(found['tag'])}" if found.get("tag") else ""
        return f"✓ Verified and published: {cell(found['repo'])}{tag}"
    if job.status == "unchanged":
        return f"✓ Unchanged: {cell(found['repo'])}"
    if job.verified:
        return f"✓ Merged and verified, not published: {cell(job.adapter)}"
    return f"Plan only, nothing was merged or published: {cell(job.adapter)}"


def section(store: StateStore, job: Job, failure: Failure | None) -> str:
    """One adapter's part."""
    found, document = job.publication or {}, store.document(job)
    parts = [f"## {headline(job, failure)}"]
    if failure is not None:
        parts.append(sentences(failure))
    elif store.state.plan_only:
        parts.append(f"Nothing is published by this event: {store.state.plan_only}. No token that can write was used.")
    elif job.status == "unchanged" and found.get("why"):
        parts.append(as_inputs(cell(found["why"])))
    elif job.target is None and job.folder:
        text = f"`publish: none` was asked for; the merged folder is {code(job.folder)} (the output `folder`)."
        parts.append(text)
    link = found.get("pr_url") or found.get("url")
    if link and failure is None:
        parts.append(f"<{link}>")
    if job.plan:
        parts.append(f"<details><summary>The plan</summary>\n\n{fenced(job.plan)}\n\n</details>")
    if document is not None:
        parts += ["### Evidence", evidence.section(document)]
        if document.get("verdict") == "verified":
            parts += ["### Reproduce it", _reproduce(document, found.get("repo") or job.target)]
    return "\n\n".join(parts)


def whole(store: StateStore) -> str:
    """All adapters' parts: those that ended, and the one that failed."""
    failure, jobs, current = store.state.failure, store.state.jobs, store.state.current
    if not jobs:
        return f"## {headline(None, failure)}\n\n{sentences(failure)}\n" if failure else ""
    ended = [section(store, job, None) for job in jobs if job.status and job is not jobs[current]]
    return "\n\n".join([*ended, section(store, jobs[current], failure)]) + "\n"


def sentences(failure: Failure) -> str:
    """What happened and what to do, each as a list entry."""
    return "\n".join(f"- **{as_inputs(cell(what))}** {as_inputs(cell(remedy))}" for what, remedy in failure.sentences)


def write_summary(path: Path, text: str) -> None:
    """Append to GITHUB_STEP_SUMMARY, cut to what GitHub keeps."""
    room = MOST - (path.stat().st_size if path.exists() else 0)
    found = redact(text).encode()
    if len(found) > room:
        found = found[: max(0, room - len(CUT.encode()))].decode(errors="ignore").encode() + CUT.encode()
    with path.open("ab") as opened:
        opened.write(found)


def _reproduce(document: Json, target: str | None) -> str:
    inputs = document.get("inputs") or {}
    adapters = inputs.get("adapters") or [inputs.get("adapter")]
    base = _source("base", inputs.get("base"))
    merge = document.get("merge") or {}
    return evidence.reproduce(
        document, merge, target or "./merged", base, [_source("adapter", found) for found in adapters]
    )


def _source(role: Role, found: Json | None) -> Source:
    """The input that a report names, as far as its name goes."""
    found = found or {}
    repo, sha = found.get("repo"), str(found.get("sha"))
    ref, subfolder = Ref(text=repo or role, repo=repo), found.get("subfolder")
    source = Source(role=role, ref=ref, repo=repo, revision=None, sha=sha, files=(), headers=(), texts={})
    return replace(source, subfolder=subfolder)
