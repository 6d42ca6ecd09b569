"""What is written down: the document, and the table."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from bot.checks import CHECKS
from bot.events import silent
from bot.records import Finding, Report
from bot.report_document import Document, InputPins, MergeFacts
from bot.verify import Subject, table, verify, write


def report(**changes: object) -> Report:
    bad = Finding(
        id="touched", status="fail", measured="959 of 357,826,560 differ", allowed="0 differ",
        why="1 tensor is not base plus adapter, rounded once, which is a long story to tell in one column.",
        worst=("model.layers.0.self_attn.q_proj.weight: " + "very " * 30 + "wrong",),
    )  # fmt: skip
    told = Document.of({"verdict": "not-verified", "checks": [asdict(bad)],
                        "not_run": [{"id": "behaviour", "reason": "it needs 400 GB of memory"}]})  # fmt: skip
    given = {"level": "weights", "findings": (bad,), "not_run": (), "noise_floor": None, "verdict": "not-verified",
             "document": told}  # fmt: skip
    return Report(**(given | changes))


def test_the_table_fits_a_hundred_columns_and_says_everything():
    lines = table(report()).partition("\ncheck ")[2].splitlines()
    assert max(map(len, lines)) <= 100
    text = " ".join(table(report()).split())
    for said in (
        "touched FAIL 959 of 357,826,560",
        "long story",
        "q_proj.weight",
        "behaviour",
        "400 GB",
        "Not verified",
    ):
        assert said in text


def test_the_document_is_canonical():
    assert (
        Document.of({"b": 0.1 + 0.2, "a": [1, None]}).canonical()
        == b'{\n  "a": [\n    1,\n    null\n  ],\n  "b": 0.3\n}\n'
    )
    assert Document.of({"x": (1, 2)}).canonical() == Document.of({"x": [1, 2]}).canonical()
    with pytest.raises(ValueError, match="JSON"):
        Document.of({"x": float("nan")}).canonical()


def test_writing_replaces_the_file_whole(tmp_path: Path):
    path = write(report(document=Document.of({"verdict": "verified"})), tmp_path)
    assert path == tmp_path / "verification.json"
    assert json.loads(path.read_bytes()) == {"verdict": "verified"}
    assert [one.name for one in tmp_path.iterdir()] == ["verification.json"]


def test_every_check_has_its_own_name_and_needs_only_earlier_ones():
    seen: list[str] = []
    for check in CHECKS:
        assert re.fullmatch(r"[a-z-]+", check.id)
        assert check.id not in seen
        assert set(check.needs) <= set(seen)
        seen.append(check.id)


def test_level_files_needs_neither_torch_nor_transformers(tmp_path: Path):
    script = f"""
import json, sys
from pathlib import Path
import bot.verify
from bot.events import silent
from bot.report_document import InputPins, MergeFacts
folder = Path({str(tmp_path)!r})
(folder / "config.json").write_text("{{}}")
(folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{{}}")
subject = bot.verify.Subject(folder=folder, base=folder, adapter=folder, inputs=InputPins.of({{}}), recorded=None,
                             merge=MergeFacts.of({{}}), dtype="auto", ours=True, level="files", not_run=(), trust_remote_code=False)
assert bot.verify.verify(subject, silent).verdict == "verified"
print(sorted({{"torch", "transformers", "peft"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_document_names_no_place_and_no_person(tmp_path: Path):
    import getpass
    import platform

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    subject = Subject(
        folder=tmp_path, base=tmp_path, adapter=tmp_path, inputs=InputPins.of({}), recorded=None, merge=MergeFacts.of({}),
        dtype="auto", ours=True,
        level="files", not_run=(), trust_remote_code=False,
    )  # fmt: skip
    text = verify(subject, silent).document.canonical().decode()
    assert str(tmp_path) not in text
    assert f'"{platform.node()}"' not in text
    assert f"/{getpass.getuser()}" not in text
