"""A folder that comes with a report is held to it."""

from __future__ import annotations

import json
from pathlib import Path

from bot.report_document import Document, InputPins
from bot.verify import write
from tests.faults import damage
from tests.faults.conftest import INPUTS, named, prove
from tests.faults.models import Built


def recorded(llama: Built, folder: Path) -> dict:
    return json.loads(write(prove(llama, folder, level="files"), folder).read_bytes())


def test_the_same_inputs_and_files_pass(llama: Built, copy: Path):
    report = recorded(llama, copy)
    (copy / "README.md").write_text("a card, written later")
    found = prove(llama, copy, level="files", recorded=Document.of(report))
    assert named(found, "pins").status == "pass"
    assert found.document.json["subject"] == report["subject"]


def test_another_base_sha_fails_by_its_name(llama: Built, copy: Path):
    report = recorded(llama, copy)
    other = {**INPUTS, "base": {"repo": "o/base", "sha": "c" * 40}}
    found = named(prove(llama, copy, level="files", recorded=Document.of(report), inputs=InputPins.of(other)), "pins")
    assert found.status == "fail"
    assert "base.sha" in found.why


def test_a_renamed_repo_with_the_same_sha_passes(llama: Built, copy: Path):
    report = recorded(llama, copy)
    other = {**INPUTS, "base": {"repo": "new-owner/base", "sha": "b" * 40}}
    assert (
        named(
            prove(llama, copy, level="files", recorded=Document.of(report), inputs=InputPins.of(other)), "pins"
        ).status
        == "pass"
    )


def test_a_file_changed_after_the_report_fails_by_its_name(llama: Built, copy: Path):
    report = recorded(llama, copy)
    damage.flipped_bit_untouched(copy, llama)
    found = named(prove(llama, copy, level="files", recorded=Document.of(report)), "pins")
    assert found.status == "fail"
    assert damage.shard_of(copy, damage.K0).name in found.why


def test_a_file_that_the_report_does_not_know_fails(llama: Built, copy: Path):
    report = recorded(llama, copy)
    damage.stranger(copy, llama)
    assert named(prove(llama, copy, level="files", recorded=Document.of(report)), "pins").status == "fail"


def test_a_report_without_inputs_fails(llama: Built, copy: Path):
    assert (
        named(prove(llama, copy, level="files", recorded=Document.of({"subject": {"files": {}}})), "pins").status
        == "fail"
    )
