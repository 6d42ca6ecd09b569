"""The run in Markdown: headline, plan, evidence, how to reproduce it. For the step's summary and for reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bot.action.input_names import as_inputs
from bot.action.state import Failure, MergeJob, StateStore
from bot.card import evidence
from bot.records import Publication, Ref, Role, Source
from bot.report_document import Document, Pin
from bot.report_markdown import opening
from bot.report_page.heat_map_text import heat_map_text
from bot.untrusted.markdown import cell, code, fenced
from bot.untrusted.redact import redact

NOWHERE = Publication(status="none", how="none")
MOST = 1_000_000  # bytes; GitHub drops a step's summary beyond 1 MiB
CUT = "\n\n… cut here: GitHub shows no more than 1 MiB. The whole report is the output `report-path`.\n"


def headline(job: MergeJob | None, failure: Failure | None) -> str:
    """How it ended, in one line of Markdown without a heading's marks."""
    if failure is not None:
        words = {3: "Refused", 4: "Not verified", 6: "This machine cannot do it", 130: "Interrupted"}
        what = words.get(failure.exit_code, "Failed")
        return f"✗ {what}: {cell(job.adapter) if job else 'adapter-merge'}"
    assert job is not None
    done = job.publication or NOWHERE
    if job.status == "published" and done.how == "pr":
        return f"✓ Verified and proposed: pull request #{done.pr_number} on {cell(done.repo or '')}"
    if job.status == "published":
        tag = f", tag {cell(done.tag)}" if done.tag else ""
        return f"✓ Verified and published: {cell(done.repo or '')}{tag}"
    if job.status == "unchanged":
        return f"✓ Unchanged: {cell(done.repo or '')}"
    if job.verified:
        return f"✓ Merged and verified, not published: {cell(job.adapter)}"
    return f"Plan only, nothing was merged or published: {cell(job.adapter)}"


def section(store: StateStore, job: MergeJob, failure: Failure | None) -> str:
    """One adapter's part."""
    done, document = job.publication or NOWHERE, store.document(job)
    parts = [f"## {headline(job, failure)}"]
    if failure is not None:
        parts.append(sentences(failure))
    elif store.state.plan_only:
        parts.append(f"Nothing is published by this event: {store.state.plan_only}. No token that can write was used.")
    elif job.status == "unchanged" and done.why:
        parts.append(as_inputs(cell(done.why)))
    elif job.target is None and job.folder:
        text = f"`publish: none` was asked for; the merged folder is {code(job.folder)} (the output `folder`)."
        parts.append(text)
    if done.link and failure is None:
        parts.append(f"<{done.link}>")
    if document is not None:
        blocks = heat_map_text(document)
        parts += [
            opening(document),
            fenced(blocks) if blocks else "",
            evidence.comparison(document, "###"),
            "### Evidence",
            evidence.section(document),
        ]
        if document.verdict == "verified":
            parts += ["### Reproduce it", _reproduce(document, done.repo or job.target)]
    if job.plan:
        parts.append(f"<details><summary>The plan</summary>\n\n{fenced(job.plan)}\n\n</details>")
    return "\n\n".join(filter(None, map(str.strip, parts)))


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
    page = redact(text).encode()
    if len(page) > room:
        page = page[: max(0, room - len(CUT.encode()))].decode(errors="ignore").encode() + CUT.encode()
    with path.open("ab") as opened:
        opened.write(page)


def _reproduce(document: Document, target: str | None) -> str:
    adapters = [_source("adapter", pin) for pin in document.inputs.adapters]
    return evidence.reproduce(document, target or "./merged", _source("base", document.inputs.base), adapters)


def _source(role: Role, pin: Pin) -> Source:
    """The input that a report names, as far as its name goes."""
    ref = Ref(text=pin.repo or role, repo=pin.repo)
    source = Source(role=role, ref=ref, repo=pin.repo, revision=None, sha=str(pin.sha), files=(), headers=(), texts={})
    return replace(source, subfolder=pin.subfolder)
