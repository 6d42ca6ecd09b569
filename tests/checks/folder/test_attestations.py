"""Statements that came with a folder fit it, or the check says in what they do not."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot.attestation import PROVENANCE, TEST_RESULT
from bot.records import Finding
from bot.report_document import Document, InputPins
from tests.attestation.conftest import MERGE, rewritten, statements
from tests.faults import damage
from tests.faults.conftest import INPUTS, named, prove
from tests.faults.models import Built

Change = Callable[[dict[str, Any]], None]


def check(llama: Built, folder: Path, *paths: Path, **changes: Any) -> Finding:
    recorded = Document.of(json.loads((folder / "verification.json").read_bytes()))
    given = {"level": "files", "merge": MERGE, "recorded": recorded, "attestations": paths}
    return named(prove(llama, folder, **given | changes), "attestation")


def sigstore_bundle(statement: dict[str, Any], **envelope: Any) -> str:
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    dsse = {"payload": payload, "payloadType": "application/vnd.in-toto+json", "signatures": [{"sig": "AA=="}]}
    bundle = {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "verificationMaterial": {}}
    return json.dumps(bundle | {"dsseEnvelope": dsse | envelope})


def test_statements_of_this_merge_fit(llama: Built, copy: Path, attested: Path) -> None:
    finding = check(llama, copy, attested)
    assert (finding.status, finding.measured) == ("pass", "2 statements")
    assert "bear no signature" in finding.why


def test_without_any_there_is_no_such_check(llama: Built, copy: Path) -> None:
    assert "attestation" not in [finding.id for finding in prove(llama, copy, level="files").findings]


def test_bundles_as_github_hands_them_out_fit_and_their_signatures_are_left_to_others(
    llama: Built, copy: Path, attested: Path
) -> None:
    attested.write_text("\n".join(map(sigstore_bundle, statements(attested))))
    finding = check(llama, copy, attested)
    assert finding.status == "pass"
    assert "not verified here: `gh attestation verify`" in finding.why


def test_a_bundle_in_a_file_of_its_own_and_over_many_lines_fits(llama: Built, copy: Path, attested: Path) -> None:
    bundle = sigstore_bundle(statements(attested)[1])
    attested.write_text(json.dumps(json.loads(bundle), indent=2))
    assert check(llama, copy, attested).measured == "1 statement"


def weights_of_another(line: dict[str, Any]) -> None:
    for subject in line["subject"]:
        if subject["name"].endswith(".safetensors"):
            subject["digest"]["sha256"] = "0" * 64


def another_model(line: dict[str, Any]) -> None:
    for subject in line["subject"]:
        subject["digest"]["sha256"] = "0" * 64


def one_shard_less(line: dict[str, Any]) -> None:
    line["subject"] = [each for each in line["subject"] if "00002-of" not in each["name"]]


def another_base(line: dict[str, Any]) -> None:
    definition = line["predicate"].get("buildDefinition") or {}
    for each in (definition.get("resolvedDependencies") or []) + (line["predicate"].get("configuration") or []):
        if each["name"] == "base":
            each["digest"] = {"gitCommit": "c" * 40}


def no_base(line: dict[str, Any]) -> None:
    if "buildDefinition" in line["predicate"]:
        line["predicate"]["buildDefinition"]["resolvedDependencies"].pop(0)


def another_merge(line: dict[str, Any]) -> None:
    if "buildDefinition" in line["predicate"]:
        line["predicate"]["buildDefinition"]["internalParameters"]["fingerprint"] = "e" * 64


def failed(line: dict[str, Any]) -> None:
    if line["predicateType"] == TEST_RESULT:
        line["predicate"] |= {"result": "FAILED", "failedTests": ["touched"]}


def no_result(line: dict[str, Any]) -> None:
    if line["predicateType"] == TEST_RESULT:
        del line["predicate"]["result"]


def of_other_types(line: dict[str, Any]) -> None:
    line["predicateType"] = "https://spdx.dev/Document/v2.3"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (another_model, "is about no file of this folder"),
        (weights_of_another, "is about another model-00001-of"),
        (one_shard_less, "No provenance is about model-00002-of"),
        (another_base, "names the base cccccccccccc; it was verified against bbbbbbbbbbbb"),
        (no_base, "does not name the base"),
        (another_merge, "is of the merge eeeeeeeeeeee, and the folder's report of ffffffffffff"),
        (failed, "is FAILED (touched)"),
        (no_result, "is None"),
        (of_other_types, "holds neither a provenance nor a test result, but https://spdx.dev/Document/v2.3"),
    ],
)
def test_what_does_not_fit_fails_and_says_in_what(
    llama: Built, copy: Path, attested: Path, change: Change, why: str
) -> None:
    finding = check(llama, copy, rewritten(attested, change))
    assert finding.status == "fail"
    assert why in " ".join((finding.why, *finding.worst))
    assert finding.why.startswith((attested.name, "The provenance in", "The test result in", "No provenance"))


def test_a_statement_about_the_base_that_this_folder_was_proven_against_does_not_fit_another(
    llama: Built, copy: Path, attested: Path
) -> None:
    other = {**INPUTS, "adapter": {"repo": "o/adapter", "sha": "d" * 40}}
    finding = check(llama, copy, attested, inputs=InputPins.of(other), recorded=None)
    assert "names the adapter aaaaaaaaaaaa; it was verified against dddddddddddd" in finding.why


def test_a_folder_that_changed_after_it_was_attested_fails(llama: Built, copy: Path, attested: Path) -> None:
    damage.flipped_bit_untouched(copy, llama)
    finding = check(llama, copy, attested, recorded=None)
    assert finding.status == "fail"
    assert f"is about another {damage.shard_of(copy, damage.K0).name}" in finding.why


def test_a_report_that_changed_after_it_was_attested_fails(llama: Built, copy: Path, attested: Path) -> None:
    path = copy / "verification.json"
    path.write_text(path.read_text().replace('"verdict": "verified"', '"verdict":  "verified"'))
    assert "is about another verification.json" in check(llama, copy, attested, recorded=None).why


def test_other_predicates_beside_known_ones_are_a_remark(llama: Built, copy: Path, attested: Path) -> None:
    spdx = statements(attested)[0] | {"predicateType": "https://spdx.dev/Document/v2.3"}
    attested.write_text(f"{attested.read_text()}{json.dumps(spdx)}\n")
    finding = check(llama, copy, attested)
    assert finding.status == "warn"
    assert "https://spdx.dev/Document/v2.3 too, which was not looked at" in finding.why


def test_a_file_that_the_folder_does_not_have_is_a_remark(llama: Built, copy: Path, attested: Path) -> None:
    def also_an_image(line: dict[str, Any]) -> None:
        line["subject"].append({"name": "image.tar", "digest": {"sha256": "1" * 64}})

    finding = check(llama, copy, rewritten(attested, also_an_image))
    assert (finding.status, "names image.tar, which the folder does not have" in finding.why) == ("warn", True)


def test_the_provenance_of_another_builder_is_compared_by_its_subjects(
    llama: Built, copy: Path, attested: Path
) -> None:
    def githubs_own(line: dict[str, Any]) -> None:
        build = {"buildType": "https://actions.github.io/buildtypes/workflow/v1", "externalParameters": {}}
        line |= {"predicateType": PROVENANCE, "predicate": {"buildDefinition": build}}

    assert check(llama, copy, rewritten(attested, githubs_own)).status == "pass"
    rewritten(attested, weights_of_another)
    assert check(llama, copy, attested).status == "fail"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("not json", "is no attestation"),
        ("[]", "a line of it is no JSON object"),
        ('{"_type": "https://in-toto.io/Statement/v0.1"}', "it is no in-toto Statement v1"),
        ('{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "messageSignature": {}}', "it signs a file"),
        (sigstore_bundle({"_type": "x"}), "it is no in-toto Statement v1"),
        (sigstore_bundle({}, payload="%%%"), "its envelope's payload is not JSON in base64"),
        (sigstore_bundle({}, payload=7), "its envelope's payload is not JSON in base64"),
        (sigstore_bundle({}, payloadType="text/plain"), "which is no in-toto statement"),
        (
            '{"_type": "https://in-toto.io/Statement/v1", "predicateType": "x", "subject": [{"name": "y"}]}',
            "its statement's subjects are not as in-toto has them",
        ),
        (
            '{"_type": "https://in-toto.io/Statement/v1", "predicateType": "x", "subject": [{"digest": {"sha256": "zz"}}]}',
            "its statement's subjects are not as in-toto has them",
        ),
        (
            '{"_type": "https://in-toto.io/Statement/v1", "predicateType": 7, "subject": []}',
            "its statement has no predicateType",
        ),
        (
            '{"_type": "https://in-toto.io/Statement/v1", "predicateType": "x", "subject": [], "predicate": []}',
            "its statement's predicate is not an object",
        ),
        ("[" * 2000, "is no attestation"),
    ],
)
def test_what_is_no_attestation_fails_and_says_why(
    llama: Built, copy: Path, attested: Path, text: str, why: str
) -> None:
    attested.write_text(text)
    finding = check(llama, copy, attested)
    assert finding.status == "fail"
    assert "is no attestation" in finding.why
    assert why in finding.why


def test_a_predicate_of_any_shape_is_no_crash(llama: Built, copy: Path, attested: Path) -> None:
    for odd in (None, 7, [], [7], {"name": 7}):
        lines = []
        for line in statements(attested):
            definition = {"buildType": line["predicate"].get("buildDefinition", {}).get("buildType")}
            definition |= {"resolvedDependencies": odd, "internalParameters": odd}
            lines.append(line | {"predicate": {"buildDefinition": definition, "configuration": odd, "result": odd}})
        path = attested.with_name("odd.jsonl")
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        assert check(llama, copy, path).status == "fail"
