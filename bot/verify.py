"""Verify: re-prove a merged folder against its base and its adapter, and write down what was found.

The checks stand in `bot.checks.CHECKS`. They share no name mapping and no scaling code with the merger.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bot.checks import CHECKS
from bot.checks.case import Case
from bot.checks.elementwise.delta_rows import delta_rows
from bot.checks.elementwise.weights import sweep_all
from bot.checks.finding import Check, finding
from bot.checks.folder.hashing import hash_files, name_inputs
from bot.checks.subject import Subject
from bot.events import Emit, Note, Stage, StepProgress, beating
from bot.records import Finding, Json, Level, Report
from bot.report_document import NAME, Document, new_document
from bot.report_text import everything
from bot.terminal.plain import plain

if TYPE_CHECKING:
    from bot.checks.behaviour.answers import Trial

__all__ = ["Subject", "table", "verify", "write"]

DEPTH: dict[Level, int] = {"files": 0, "weights": 1, "full": 2}


def verify(subject: Subject, emit: Emit, case: Case | None = None) -> Report:
    """Run every check up to the subject's level. Raises Refused when base or adapter cannot be read. `case`: the subject's, where
    some of it was read before.

    The verdict is `verified` only when no check failed or had to be skipped. Where `full` was not asked for by name and the
    models cannot be run by this installation, it is that of the level `weights`.
    """
    emit(Stage(name="verify", title=f"Verifying ({subject.level})"))
    with beating(emit, "verify") as emit:
        case = case or Case(subject, emit)
        case.emit = emit
        findings: dict[str, Finding] = {}
        selected = list(_selected_checks(subject))
        # What hashes every file runs once the weights were compared, and before anything that runs models.
        for check in sorted(selected, key=lambda check: (check.level == "full", check.hashes)):
            emit(StepProgress(stage="verify", done=0, total=0, what=f"Check {check.id}"))
            findings[check.id] = _run(check, case, findings)
            _emit_finding(findings[check.id], emit)
    results = tuple(findings[check.id] for check in selected)
    trial = _trial(case)
    floor = None if trial is None else trial.noise_floor
    rows = None if trial is None else trial.comparison
    comparison = rows if isinstance(rows, list) else None
    excused = _excused(subject, trial)
    verdict: str = "not-verified" if any(_prevents_verified(finding, excused) for finding in results) else "verified"
    cause = _cause(case, findings)
    checks = [asdict(finding) for finding in results]
    not_run = (
        subject.not_run if trial is None or not trial.unanswered else (*subject.not_run, ("answers", trial.unanswered))
    )
    report = Report(
        level="weights" if any(finding.id in excused for finding in results) else subject.level,
        findings=results,
        not_run=not_run,
        noise_floor=floor,
        verdict="verified" if verdict == "verified" else "not-verified",
        document=new_document(
            case.once(name_inputs),
            subject.merge,
            case.once(hash_files),
            checks,
            not_run,
            floor,
            comparison,
            verdict,
            _rows_of(case, trial),
            cause,
            None if trial is None else trial.device,
        ),
    )
    return _evaluated(report, subject, emit)


def _evaluated(report: Report, subject: Subject, emit: Emit) -> Report:
    """The report with what lm_eval measured, where that was asked for; the verdict is what it was."""
    if subject.eval_tasks is None:
        return report
    from bot.evaluation import evaluate

    models = (subject.base, subject.adapter, subject.folder)
    evaluation = evaluate(subject.eval_tasks, subject.eval_limit, *models, emit)
    return replace(report, document=Document.of(report.document.json | {"evaluation": evaluation}))


def _cause(case: Case, findings: dict[str, Finding]) -> Json | None:
    """What most likely went wrong, where something is not as it should be."""
    if all(finding.status in ("pass", "skip") for finding in findings.values()):
        return None
    if case.weights_gone:
        text = "What went wrong is looked for where everything is on the disk: --disk whole."
        case.emit(Note(text=text))
        return None
    from bot.checks.cause.diagnosis import find_cause  # not for those whose merge is right

    case.emit(StepProgress(stage="verify", done=0, total=0, what="Looking for the cause"))
    return find_cause(case, findings)


def _selected_checks(subject: Subject) -> Iterator[Check]:
    """The checks up to the subject's level that concern a merge of its kind."""
    for check in CHECKS:
        wrong_storage = check.quantised is not None and check.quantised == (subject.quantize == "none")
        lacks_others = check.combined and subject.combination is None
        unasked = bool(check.on_request) and not getattr(subject, check.on_request)
        if DEPTH[check.level] <= DEPTH[subject.level] and not (wrong_storage or lacks_others or unasked):
            yield check


def _trial(case: Case) -> Trial | None:
    """What the models did; None where they were not run."""
    if case.subject.level != "full":
        return None
    from bot.checks.behaviour.findings import run_models

    return case.known(run_models)


def _rows_of(case: Case, trial: Trial | None) -> Json:
    """What was measured of every layer, module and prompt."""
    swept = case.known(sweep_all)
    rows: Json = {"delta": delta_rows(swept.touched) if swept else []}
    if trial is not None:
        from bot.checks.behaviour.prompt_rows import prompt_rows  # the workers are for those who run models

        rows |= {"prompts": prompt_rows(trial), "probe": trial.probe, "answers": list(trial.answers)}
    return rows


def _excused(subject: Subject, trial: Trial | None) -> frozenset[str]:
    """The checks that may be skipped: those of the level `full`, where nobody asked for it by name and it cannot be had."""
    if subject.required or trial is None or trial.unrunnable is None:
        return frozenset()
    return frozenset(check.id for check in CHECKS if check.level == "full")


def _prevents_verified(finding: Finding, excused: frozenset[str]) -> bool:
    return finding.status == "fail" or (finding.status == "skip" and finding.id not in excused)


def table(report: Report) -> str:
    """Every check as plain text, with the verdict."""
    return plain(everything(report.document))


def write(report: Report, folder: Path) -> Path:
    """Put verification.json into the folder, whole or not at all. Returns its path."""
    path, fresh = folder / NAME, folder / f".{NAME}.tmp"
    fresh.write_bytes(report.document.canonical())
    return fresh.replace(path)


def _run(check: Check, case: Case, earlier: dict[str, Finding]) -> Finding:
    """One check, timed; skipped where a check that it builds on has failed."""
    began = time.perf_counter()
    failed = [need for need in check.needs if need in earlier and earlier[need].status in ("fail", "skip")]
    if failed:
        why = f"Not run: {' and '.join(failed)} did not pass."
        return replace(finding(check.id, "skip", "not run", "", why), group=check.group)
    finished = check.run(case)
    return replace(finished, group=check.group, seconds=round(time.perf_counter() - began, 3))


def _emit_finding(finding: Finding, emit: Emit) -> None:
    if finding.status != "pass":
        emit(Note(text=f"{finding.id}: {finding.why}", level="note" if finding.status == "warn" else "warning"))
