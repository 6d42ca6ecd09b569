"""The two vetted predicates that fit a merge: SLSA Provenance v1 and Test Result v0.1, with the specifications' own fields.

https://slsa.dev/spec/v1.1/provenance
https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bot import __version__
from bot.attestation.invocation import Invocation
from bot.attestation.statement import BUILD_TYPE, asked_for, inputs_of, without_empty
from bot.project import NAME, REPOSITORY
from bot.records import Report
from bot.report_document import NAME as REPORT
from bot.report_document import Document, Json

LISTS = (("pass", "passedTests"), ("warn", "warnedTests"), ("fail", "failedTests"))


@dataclass(frozen=True, kw_only=True)
class Times:
    """When a merge began and ended, as RFC 3339 writes it in UTC."""

    started: str
    finished: str


def provenance(document: Document, address: str, times: Times, by: Invocation) -> Json:
    """What was merged into what, how, by whom and when. `address`: the Hub's. The same merge, made again, differs in
    `runDetails` alone."""
    inputs, merge = document.inputs, document.merge
    asked = [
        ("base", asked_for(inputs.base)),
        ("adapters", [asked_for(pin) for pin in inputs.adapters]),
        ("combination", inputs.combination),
        ("target", merge.target),
        ("options", dict(merge.options)),
    ]
    inner = [
        ("method", merge.method),
        ("engine", merge.json.get("engine")),
        ("dtype", merge.dtype),
        ("recipe", inputs.recipe),
        ("fingerprint", merge.fingerprint),
        ("environment", {name: value for name, value in document.environment.items() if value is not None}),
    ]
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": without_empty(asked),
            "internalParameters": without_empty(inner),
            "resolvedDependencies": inputs_of(inputs, address),
        },
        "runDetails": {
            "builder": {"id": by.builder, "version": {NAME: __version__}},
            "metadata": {"invocationId": by.id, "startedOn": times.started, "finishedOn": times.finished},
        },
    }


def test_result(report: Report, address: str, report_sha256: str | None, by: Invocation) -> Json:
    """What the checks found. `report_sha256`: of the folder's verification.json; None where it has none.

    What was not run is in no list: `configuration` names it with the level.
    """
    document = report.document
    skipped = [finding.id for finding in report.findings if finding.status == "skip"]
    not_run = [id for id, _ in report.not_run]
    checks = without_empty([("level", report.level), ("skipped", skipped), ("notRun", not_run)])
    return without_empty(
        [
            ("result", _result(report)),
            (
                "configuration",
                [
                    {
                        "name": "checks",
                        "uri": f"{REPOSITORY}/blob/v{__version__}/bot/checks/__init__.py",
                        "annotations": checks,
                    },
                    *inputs_of(document.inputs, address),
                    *([{"name": REPORT, "digest": {"sha256": report_sha256}}] if report_sha256 else []),
                ],
            ),
            ("url", by.url),
        ]
    ) | {field: [finding.id for finding in report.findings if finding.status == status] for status, field in LISTS}


def _result(report: Report) -> Literal["PASSED", "WARNED", "FAILED"]:
    if report.verdict != "verified":
        return "FAILED"
    return "WARNED" if any(finding.status == "warn" for finding in report.findings) else "PASSED"
