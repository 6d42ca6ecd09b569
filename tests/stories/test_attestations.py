"""Statements about a merge: written with it, signed by others, and held against what was published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bot.attestation import PROVENANCE, TEST_RESULT
from tests.attestation.conftest import statements
from tests.stories.conftest import Command, World

QUICK = ("--verify", "files")


def test_a_run_writes_statements_that_fit_what_it_published(
    world: World, adapter_merge: Command, tmp_path: Path
) -> None:
    path = tmp_path / "run.intoto.jsonl"
    ran = adapter_merge("run", "demo/adapter@v1", *QUICK, "--attestation", path)
    assert ran.code == 0, ran.err
    provenance, result = statements(path)
    assert (provenance["predicateType"], result["predicateType"]) == (PROVENANCE, TEST_RESULT)
    definition = provenance["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["adapters"] == ["demo/adapter@v1"]
    sha = world.api.model_info("demo/base").sha
    base, _ = definition["resolvedDependencies"]
    assert base["digest"] == {"gitCommit": sha}
    assert base["uri"] == f"pkg:huggingface/demo/base@{sha}?repository_url={world.hub.url}"
    ran = adapter_merge("verify", "demo/adapter-merged", *QUICK, "--check-attestation", path, "--json")
    assert ran.code == 0, ran.err
    assert status_of(json.loads(ran.out), "attestation") == "pass"


def test_statements_of_one_merge_do_not_fit_another(world: World, adapter_merge: Command, tmp_path: Path) -> None:
    path = tmp_path / "v1.intoto.jsonl"
    assert adapter_merge("run", "demo/adapter@v1", *QUICK, "--attestation", path).code == 0
    world.new_version("v2", seed=7)
    assert adapter_merge("merge", "demo/adapter@v2", *QUICK, "-o", tmp_path / "v2").code == 0
    ran = adapter_merge("verify", tmp_path / "v2", *QUICK, "--check-attestation", path)
    assert ran.code == 4
    assert "attestation: The provenance in v1.intoto.jsonl is about another model" in ran.err


def test_a_merge_into_a_folder_names_no_path_of_this_machine(
    world: World, adapter_merge: Command, tmp_path: Path
) -> None:
    path = tmp_path / "merge.intoto.jsonl"
    ran = adapter_merge(
        "merge", world.adapter, "--base", world.base, *QUICK, "-o", tmp_path / "out", "--attestation", path
    )
    assert ran.code == 0, ran.err
    assert str(tmp_path) not in path.read_text()
    definition = statements(path)[0]["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["base"] == "a folder"
    assert [each["digest"].keys() for each in definition["resolvedDependencies"]] == [{"sha256"}, {"sha256"}]
    given = ("--base", world.base, "--adapter", world.adapter)
    assert adapter_merge("verify", tmp_path / "out", *given, *QUICK, "--check-attestation", path).code == 0


def test_verify_writes_what_it_proved_and_no_provenance(world: World, adapter_merge: Command, tmp_path: Path) -> None:
    path = tmp_path / "proof.intoto.jsonl"
    assert adapter_merge("run", "demo/adapter@v1", *QUICK).code == 0
    assert adapter_merge("verify", "demo/adapter-merged", *QUICK, "--attestation", path).code == 0
    (line,) = statements(path)
    assert line["predicateType"] == TEST_RESULT
    assert "verification.json" in [subject["name"] for subject in line["subject"]]


def test_a_merge_that_is_published_already_has_none_and_says_so(
    world: World, adapter_merge: Command, tmp_path: Path
) -> None:
    assert adapter_merge("run", "demo/adapter@v1", *QUICK).code == 0
    ran = adapter_merge("run", "demo/adapter@v1", *QUICK, "--attestation", tmp_path / "again.jsonl")
    assert ran.code == 0
    assert "no attestation was written; `adapter-merge verify demo/adapter-merged" in ran.err
    assert not (tmp_path / "again.jsonl").exists()


def test_where_it_cannot_be_written_nothing_is_merged(world: World, adapter_merge: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for path, why in ((out / "x.jsonl", "There is no folder for the attestation"),):
        ran = adapter_merge("merge", "demo/adapter", *QUICK, "-o", out, "--attestation", path)
        assert (ran.code, why in ran.err, out.exists()) == (2, True, False)
    assert adapter_merge("merge", "demo/adapter", *QUICK, "-o", out).code == 0
    ran = adapter_merge("verify", out, *QUICK, "--attestation", out / "x.jsonl")
    assert (ran.code, "would lie in the model's own folder" in ran.err) == (2, True)
    ran = adapter_merge("run", "demo/adapter", "--each", "--attestation", tmp_path / "x.jsonl")
    assert (ran.code, "With --each there is an attestation for each merge" in ran.err) == (2, True)


def status_of(report: dict[str, Any], id: str) -> str:
    return next(check["status"] for check in report["checks"] if check["id"] == id)
