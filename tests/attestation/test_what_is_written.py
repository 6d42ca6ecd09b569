"""The statements are what their specifications say, and say what the report says."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

from bot.attestation import BUILD_TYPE, PROVENANCE, TEST_RESULT, attest, paths_beside
from bot.attestation.statement import package_url
from bot.records import Report
from bot.report_document import Pin
from tests.attestation.conftest import HUB, STARTED, statements

ROOT = Path(__file__).parents[2]


def test_in_totos_own_library_reads_every_statement_and_knows_every_field(attested: Path) -> None:
    messages = {PROVENANCE: provenance_pb2.Provenance, TEST_RESULT: test_result_pb2.TestResult}
    lines = statements(attested)
    assert [line["predicateType"] for line in lines] == [PROVENANCE, TEST_RESULT]
    for line in lines:
        statement = ParseDict({key: line[key] for key in line if key != "_type"}, statement_pb2.Statement())
        statement.type = line["_type"]
        Statement.copy_from_pb(statement).validate()
        ParseDict(line["predicate"], messages[line["predicateType"]]())  # raises for a field that it does not have


def test_the_subjects_are_the_proven_files_and_the_report(attested: Path, copy: Path, report: Report) -> None:
    for line in statements(attested):
        subjects = {subject["name"]: subject["digest"]["sha256"] for subject in line["subject"]}
        assert subjects.keys() == (report.document.files or {}).keys() | {"verification.json"}
        for name, sha256 in subjects.items():
            assert hashlib.sha256((copy / name).read_bytes()).hexdigest() == sha256


def test_the_provenance_names_inputs_options_and_the_run(attested: Path) -> None:
    made = statements(attested)[0]["predicate"]
    definition, details = made["buildDefinition"], made["runDetails"]
    assert definition["buildType"] == BUILD_TYPE
    assert definition["externalParameters"] == {
        "base": "o/base",
        "adapters": ["o/adapter"],
        "target": "o/merged",
        "options": {"dtype": "auto", "quantize": "none"},
    }
    assert definition["internalParameters"]["fingerprint"] == "f" * 64
    assert definition["resolvedDependencies"] == [
        {"name": "base", "uri": f"pkg:huggingface/o/base@{'b' * 40}", "digest": {"gitCommit": "b" * 40}},
        {"name": "adapter", "uri": f"pkg:huggingface/o/adapter@{'a' * 40}", "digest": {"gitCommit": "a" * 40}},
    ]
    assert details["metadata"]["startedOn"] == STARTED < details["metadata"]["finishedOn"]


def test_the_build_type_and_the_builder_are_headings_of_the_page(attested: Path) -> None:
    page = (ROOT / "docs" / "provenance.md").read_text()
    anchors = {line.strip("# ").lower().replace(" ", "-") for line in page.splitlines() if line.startswith("#")}
    details = statements(attested)[0]["predicate"]["runDetails"]
    for uri in (BUILD_TYPE, details["builder"]["id"]):
        assert uri.partition("#")[2] in anchors, uri


def test_the_test_result_lists_the_checks_by_what_they_found(attested: Path, report: Report) -> None:
    made = statements(attested)[1]["predicate"]
    assert made["result"] == "PASSED"
    for field, status in (("passedTests", "pass"), ("warnedTests", "warn"), ("failedTests", "fail")):
        assert made[field] == [finding.id for finding in report.findings if finding.status == status]
    checks, base, adapter, document = made["configuration"]
    assert checks["annotations"]["level"] == "files"
    assert (base["digest"], adapter["digest"]) == ({"gitCommit": "b" * 40}, {"gitCommit": "a" * 40})
    assert document["name"] == "verification.json"


def test_remarks_make_it_a_warned_one(report: Report, copy: Path, attested: Path) -> None:
    first, *others = report.findings
    attest(attested, copy, replace(report, findings=(replace(first, status="warn"), *others)), HUB, STARTED)
    made = statements(attested)[1]["predicate"]
    assert (made["result"], made["warnedTests"]) == ("WARNED", [first.id])


def test_what_is_not_proven_has_a_failed_result_and_no_provenance(report: Report, copy: Path, attested: Path) -> None:
    beside = paths_beside(attested)
    assert beside.provenance.exists()
    attest(attested, copy, replace(report, verdict="not-verified"), HUB, STARTED)
    (line,) = statements(attested)
    assert (line["predicateType"], line["predicate"]["result"]) == (TEST_RESULT, "FAILED")
    assert not beside.provenance.exists()  # the earlier merge's is gone


def test_what_other_tools_take_lies_beside_it(attested: Path, copy: Path) -> None:
    beside = paths_beside(attested)
    provenance, result = statements(attested)
    assert json.loads(beside.provenance.read_bytes()) == provenance["predicate"]
    assert json.loads(beside.result.read_bytes()) == result["predicate"]
    lines = [line.split("  ") for line in beside.checksums.read_text().splitlines()]
    assert {name: sha256 for sha256, name in lines} == {
        subject["name"]: subject["digest"]["sha256"] for subject in provenance["subject"]
    }


def test_the_same_merge_again_differs_in_its_run_alone(report: Report, copy: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    attest(first, copy, report, HUB, "2026-01-01T00:00:00Z")
    attest(second, copy, report, HUB, "2026-01-02T00:00:00Z")
    pairs = zip(statements(first), statements(second), strict=True)
    for one, other in pairs:
        assert (one["predicate"].pop("runDetails", 1) == other["predicate"].pop("runDetails", 1)) == (
            one["predicateType"] == TEST_RESULT
        )
        assert one == other


def test_a_workflow_is_its_builder_by_file_and_ref(
    report: Report, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "acme/adapters",
        "GITHUB_WORKFLOW_REF": "acme/adapters/.github/workflows/merge.yml@refs/tags/v1",
        "GITHUB_RUN_ID": "7",
        "GITHUB_RUN_ATTEMPT": "2",
    }
    for name, value in runner.items():
        monkeypatch.setenv(name, value)
    attest(tmp_path / "x.jsonl", copy, report, HUB, STARTED)
    provenance, result = (line["predicate"] for line in statements(tmp_path / "x.jsonl"))
    assert provenance["runDetails"]["builder"]["id"] == f"https://github.com/{runner['GITHUB_WORKFLOW_REF']}"
    assert provenance["runDetails"]["metadata"]["invocationId"].endswith("/acme/adapters/actions/runs/7/attempts/2")
    assert result["url"] == "https://github.com/acme/adapters/actions/runs/7"


@pytest.mark.parametrize(
    ("pin", "address", "url"),
    [
        (Pin(repo="o/m", sha="1" * 40), HUB, f"pkg:huggingface/o/m@{'1' * 40}"),
        (
            Pin(repo="o/m", sha="1" * 40, subfolder="checkpoint-5"),
            "https://hub.example:8443",
            f"pkg:huggingface/o/m@{'1' * 40}?repository_url=https://hub.example:8443#checkpoint-5",
        ),
    ],
)
def test_an_input_has_a_package_url(pin: Pin, address: str, url: str) -> None:
    assert package_url(pin, address) == url
