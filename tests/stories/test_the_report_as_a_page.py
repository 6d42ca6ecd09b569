"""The report as a page: where it is asked for, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.browser import Reader
from tests.stories.conftest import Command, World

MERGED = "demo/adapter-merged"


def test_a_full_proof_with_a_report_answers_the_prompts_and_draws_everything(
    world: World, adapter_merge: Command, tmp_path: Path
) -> None:
    page, out = tmp_path / "report.html", tmp_path / "out"
    ran = adapter_merge("merge", world.adapter, "--base", world.base, "-o", out, "--report", page)
    assert ran.code == 0, ran.err
    report = json.loads((out / "verification.json").read_text())
    assert [set(row) for row in report["answers"]] == [{"prompt", "base", "unmerged", "merged"}] * 3
    assert len(report["prompts"]) == 8
    text = Reader(page.read_text()).text
    for part in (
        "Verified at level full",
        "Size of the delta",
        "self_attn.q_proj",
        "Module by module",
        "Name three colours.",
    ):
        assert part in text
    assert "report.html" not in {path.name for path in out.iterdir()}


def test_without_a_report_nobody_is_asked(world: World, adapter_merge: Command, tmp_path: Path) -> None:
    ran = adapter_merge("merge", world.adapter, "--base", world.base, "-o", tmp_path / "out", "--verify", "weights")
    assert ran.code == 0, ran.err
    assert "answers" not in json.loads((tmp_path / "out" / "verification.json").read_text())


def test_a_failed_proof_gets_its_page_too_and_one_is_drawn_again_from_what_is_there(
    world: World, adapter_merge: Command, tmp_path: Path
) -> None:
    out, page, again = tmp_path / "out", tmp_path / "failed.html", tmp_path / "again.html"
    assert adapter_merge("merge", world.adapter, "--base", world.base, "-o", out, "--verify", "weights").code == 0
    assert adapter_merge("report", out, "-o", again).out.strip() == str(again)
    assert "✓ Verified at level weights" in Reader(again.read_text()).text
    assert adapter_merge("report", out / "verification.json", "--output", page).code == 0
    assert page.read_text() == again.read_text()
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    ran = adapter_merge(
        "verify", out, "--base", world.base, "--adapter", world.adapter, "--verify", "weights", "--report", page
    )
    assert ran.code == 4
    assert "✗ Not verified" in Reader(page.read_text()).text


def test_a_published_page_lies_beside_the_report_and_is_none_of_the_files_that_it_vouches_for(
    world: World, adapter_merge: Command, tmp_path: Path
) -> None:
    ran = adapter_merge("run", "demo/adapter@v1", "--verify", "weights", "--publish-report")
    assert ran.code == 0, ran.err
    names = world.api.list_repo_files(MERGED)
    assert "report.html" in names
    report = json.loads(Path(world.api.hf_hub_download(MERGED, "verification.json")).read_text())
    assert "report.html" not in report["subject"]["files"]
    assert "✓ Verified" in Reader(Path(world.api.hf_hub_download(MERGED, "report.html")).read_text()).text
    # It is still this merge, for who looks and for who proves it again; a page is drawn of it from afar.
    ran = adapter_merge("run", "demo/adapter@v1", "--verify", "weights", "--report", tmp_path / "page.html")
    assert "adapter-merge report demo/adapter-merged --output FILE" in ran.err
    assert "unchanged" in ran.out
    assert not (tmp_path / "page.html").exists()
    ran = adapter_merge("verify", MERGED, "--verify", "weights")
    assert ran.code == 0, ran.err
    assert "report.html" not in ran.out
    assert adapter_merge("report", MERGED, "--output", tmp_path / "page.html").code == 0
    assert "demo/adapter merged into demo/base" in Reader((tmp_path / "page.html").read_text()).text


def test_without_being_asked_no_page_is_published(world: World, adapter_merge: Command) -> None:
    assert adapter_merge("run", "demo/adapter@v1", "--verify", "files").code == 0
    assert "report.html" not in world.api.list_repo_files(MERGED)


@pytest.mark.parametrize("command", ["merge", "run", "verify", "report"])
def test_a_page_without_a_folder_is_refused_before_any_work(
    world: World, adapter_merge: Command, tmp_path: Path, command: str
) -> None:
    page = tmp_path / "nowhere" / "page.html"
    before = world.answers()
    words = {
        "merge": ("merge", world.adapter, "--base", world.base, "-o", tmp_path / "out", "--report", page),
        "run": ("run", "demo/adapter", "--report", page),
        "verify": ("verify", MERGED, "--report", page),
        "report": ("report", MERGED, "--output", page),
    }[command]
    ran = adapter_merge(*words)
    assert ran.code == 2
    assert f"There is no folder for the report {page}." in ran.err
    assert not (tmp_path / "out").exists()
    if command != "run":  # which has planned by then
        assert world.answers() == before


def test_what_has_no_report_cannot_be_drawn(world: World, adapter_merge: Command, tmp_path: Path) -> None:
    for merged in (world.base, "demo/base", tmp_path / "missing"):
        ran = adapter_merge("report", merged, "-o", tmp_path / "page.html")
        assert ran.code == 5
        assert "has no verification.json" in ran.err
    (tmp_path / "verification.json").write_text('{"checks": 7}')
    ran = adapter_merge("report", tmp_path / "verification.json", "-o", tmp_path / "page.html")
    assert ran.code == 3
    assert not (tmp_path / "page.html").exists()


def test_each_of_many_has_a_report_of_its_own(world: World, adapter_merge: Command, tmp_path: Path) -> None:
    ran = adapter_merge("run", "demo/adapter", "demo/adapter@v1", "--each", "--report", tmp_path / "page.html")
    assert ran.code == 2
    assert "--report names one file" in ran.err
