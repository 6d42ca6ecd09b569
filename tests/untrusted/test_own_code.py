"""A repo's own code: only the base's, only when trusted, and with nothing in its reach that is judged or secret."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bot.assets import KINDS
from bot.checks.behaviour import trial
from bot.checks.behaviour.job import Stopped, WorkerJob, write_answer
from bot.checks.behaviour.sandbox import _pythons
from bot.checks.folder.own_code import changed_since, code_named, foreign_code, state_of
from bot.plan.input_refusals import code_refusals
from bot.records import Asset, FileEntry, Options, Ref, Role, Source
from tests.untrusted.conftest import ROOT

TRIES = """
import json, os, signal, socket, sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from bot.checks.behaviour.sandbox import confine
home, work, judged = map(Path, sys.argv[1:4])
if sys.argv[4] == "confined":
    confined = confine(writable=[work], readable=[judged])
def can(do):
    try: do(); return True
    except (OSError, PermissionError): return False
def connect():
    with socket.socket() as one: one.connect(("127.0.0.1", int(sys.argv[5])))
print(json.dumps({
    "read judged": can(lambda: (judged / "config.json").read_bytes()),
    "write work": can(lambda: (work / "x").write_text("x")),
    "import": can(lambda: __import__("colorsys")),
    "write null": can(lambda: Path(os.devnull).write_text("x")),
    "write judged": can(lambda: (judged / "config.json").write_text("{}")),
    "add judged": can(lambda: (judged / "new").write_text("x")),
    "remove judged": can(lambda: (judged / "old").unlink()),
    "link out": can(lambda: os.link(judged / "config.json", work / "config.json")),
    "read token": can(lambda: (home / "token").read_text()),
    "parent's environment": can(lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes()),
    "connect": can(connect),
    "signal": can(lambda: os.kill(os.getppid(), 0)),
}))
"""


@pytest.mark.parametrize("confined", [True, False])
def test_what_a_confined_process_can_do(confined: bool, tmp_path: Path) -> None:
    import socket

    home, work, judged = (tmp_path / name for name in ("home", "work", "judged"))
    for folder in (home, work, judged):
        folder.mkdir()
    (home / "token").write_text("secret")
    (judged / "config.json").write_text('{"a": 1}')
    (judged / "old").write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        command = [
            sys.executable,
            "-c",
            TRIES,
            *map(str, (home, work, judged)),
            "confined" if confined else "free",
            port,
        ]
        ran = subprocess.run(command, capture_output=True, env={"PYTHONPATH": str(ROOT)}, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr.decode()
    found = json.loads(ran.stdout)
    needed = {"read judged", "write work", "import", "write null"}
    assert {name for name in needed if not found[name]} == set()
    others = {name for name, could in found.items() if could} - needed
    assert others == (set() if confined and has_landlock() else found.keys() - needed)


def test_pythons_libraries_stay_readable_and_the_current_folder_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(_pythons())
    monkeypatch.setenv("LD_LIBRARY_PATH", "/modules/lib:.::lib")
    assert set(_pythons()) - before == {Path("/modules/lib")}


def test_a_system_that_cannot_confine_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = Stopped(status="skip", why="…")

    def run(case: Any, job: WorkerJob) -> int:
        assert WorkerJob.read(job.work / f"{job.role}-job.json") == job
        write_answer(job.work / f"{job.role}.json", stopped, confined=False)
        return 0

    said: list[object] = []
    subject = SimpleNamespace(folder=tmp_path / "a", base=tmp_path / "a", adapter=tmp_path / "a")
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(trial, "_run", run)
    case: Any = SimpleNamespace(emit=said.append, subject=subject)
    job = WorkerJob(
        base=tmp_path,
        adapter=tmp_path,
        folder=tmp_path,
        work=tmp_path,
        storage="float32",
        compute="float32",
        trust=True,
    )
    assert [trial._work(case, replace(job, role=role)) for role in ("reference", "merged")] == [stopped, stopped]
    assert [note.text for note in said if getattr(note, "level", "") == "warning"] == [trial.UNCONFINED]


def has_landlock() -> bool:
    import ctypes

    return bool(ctypes.CDLL(None).syscall(444, None, 0, 1) >= 6)


def test_whatever_changes_while_code_runs_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("one")
    before = state_of(folder)
    assert changed_since(before, folder) is None
    (folder / "config.json").write_text("two")
    assert changed_since(before, folder) == "config.json"
    (folder / "config.json").write_text("one")
    assert changed_since(before, folder) is None  # nothing that counts
    (folder / "modeling.py").write_text("")
    assert changed_since(before, folder) == "modeling.py"
    (folder / "modeling.py").unlink()
    (folder / "model.safetensors").unlink()
    assert changed_since(before, folder) == "model.safetensors"


def test_only_the_bases_own_code_is_run(tmp_path: Path) -> None:
    base, merged = tmp_path / "base", tmp_path / "merged"
    for folder in (base, merged):
        (folder / "layers").mkdir(parents=True)
        (folder / "modeling_x.py").write_text("one")
        (folder / "layers" / "a.py").write_text("two")
    assert foreign_code(merged, base) is None
    (merged / "layers" / "a.py").write_text("other")
    assert foreign_code(merged, base) == "layers/a.py is not the base's"
    (merged / "layers" / "a.py").write_text("two")
    (merged / "LICENSE.py").write_text("new")
    assert foreign_code(merged, base) == "LICENSE.py is not the base's"
    (merged / "LICENSE.py").unlink()
    (merged / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "evil/repo--modeling_x.X"}}))
    assert "another repo's code" in (foreign_code(merged, base) or "")


@pytest.mark.parametrize(
    "value", ["modeling_x.X", ["a.B", None], {"AutoTokenizer": ["tok.Slow", None]}, 5, [[5]], {"a": {"b": 1}}]
)
def test_every_shape_of_auto_map_is_read(value: object, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": value}))
    assert [name for name, _ in code_named(tmp_path)] == ["tokenizer_config.json"]


def source(role: Role, files: list[str], **texts: object) -> Source:
    return Source(
        role=role, ref=Ref(text="x", repo="o/x"), repo="o/x", revision=None, sha="1" * 40, headers=(),
        files=tuple(FileEntry(name=name, size=1) for name in files),
        texts={f"{name}.json": json.dumps(text).encode() for name, text in texts.items()},
    )  # fmt: skip


def assets(**owners: Role) -> list[Asset]:
    return [Asset(name=f"{name}.json", source=owner, why="") for name, owner in owners.items()]


@pytest.mark.parametrize(
    ("reference", "trusted", "said"),
    [
        ("modeling_x.X", False, None),
        ("modeling_gone.X", False, "code that the base does not have (modeling_gone.py)"),
        ("modeling_gone.X", True, "code that the base does not have (modeling_gone.py)"),
        ("evil/repo--modeling_x.X", False, "code of another repo (evil/repo--modeling_x.X)"),
        ("evil/repo--modeling_x.X", True, None),
        ("../../x.X", True, "no class of a file"),
        ({"a": 1}, False, "no class of a file"),
        (["tok.Slow", None], False, "code that the base does not have (tok.py)"),
    ],
)
def test_what_an_auto_map_points_to_is_planned(reference: object, trusted: bool, said: str | None) -> None:
    base = source("base", ["modeling_x.py"], config={"auto_map": {"AutoModel": reference}})
    found = code_refusals(base, source("adapter", []), assets(config="base"), Options(trust_remote_code=trusted))
    assert [said in refusal.reason for refusal in found if said] == ([True] if said else [])
    assert bool(found) == bool(said)


def test_an_adapters_tokenizer_code_is_not_carried_and_not_run() -> None:
    adapter = source("adapter", ["tok.py"], tokenizer_config={"auto_map": {"AutoTokenizer": ["tok.Slow", None]}})
    (refusal,) = code_refusals(
        source("base", []), adapter, assets(tokenizer_config="adapter"), Options(trust_remote_code=True)
    )
    assert refusal.code == "code-elsewhere"
    assert "tokenizer_config.json of the adapter" in refusal.reason


@pytest.mark.parametrize(
    "name", ["LICENSE", "LICENSE.txt", "license.md", "LICENSE-CODE", "NOTICE", "LICENSE.Apache-2.0", "COPYING.rst"]
)
def test_a_license_is_carried(name: str) -> None:
    assert kinds(name) == ["license"]


@pytest.mark.parametrize(
    "name", ["LICENSE.safetensors", "NOTICE.bin", "license.so", "COPYING.sh", "LICENSE.json", "notice.PKL"]
)
def test_what_is_merely_called_a_license_is_none(name: str) -> None:
    assert kinds(name) == []


def test_python_called_license_is_code() -> None:
    assert kinds("LICENSE.py") == ["custom code"]


def kinds(name: str) -> list[str]:
    return [kind for kind, pattern, _ in KINDS if pattern.fullmatch(name)]
