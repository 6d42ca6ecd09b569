"""Standard output holds the result and nothing else, JSON where that was asked for; `--quiet` leaves failures and warnings."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest

from tests.factory import save_adapter
from tests.stories.conftest import Command, World, name_base
from tests.stories.test_bad_input import edit_tensors, first

MERGED = "demo/adapter-merged"


@pytest.fixture
def there(world: World, adapter_merge: Command, tmp_path: Path) -> dict[str, tuple[str | Path, ...]]:
    """The words of every command that has something to say, for a merge that is made and published."""
    out = tmp_path / "out"
    assert adapter_merge("merge", "demo/adapter", "-o", out, "--verify", "files").code == 0
    assert adapter_merge("publish", out, "--to", MERGED).code == 0
    return {
        "plan": ("plan", "demo/adapter"),
        "merge": ("merge", "demo/adapter", "-o", tmp_path / "again", "--force", "--verify", "files"),
        "run": ("run", "demo/adapter"),
        "run each": ("run", "demo/adapter", "--each", "--publish", "none", "-o", tmp_path / "each", "--force", "--verify", "files"),
        "verify": ("verify", out, "--verify", "weights"),
        "publish": ("publish", out, "--to", MERGED),
        "compare": ("compare", out, "demo/base"),
        "doctor": ("doctor", MERGED),
    }  # fmt: skip


def test_every_command_keeps_its_output_apart(there, adapter_merge):
    for name, words in there.items():
        whole = adapter_merge(*words, "--json")
        assert whole.code == 0, (name, whole.err)
        json.loads(whole.out)
        plain = adapter_merge(*words)
        assert plain.out.strip(), f"{name} prints no result"
        assert "▸" not in plain.out, f"{name} prints progress where its result belongs"
        quiet = adapter_merge(*words, "--quiet")
        lines = [line for line in f"{quiet.out}{quiet.err}".splitlines() if line.strip()]
        assert all(line.startswith(("  !", "warn")) for line in lines), (name, lines)
        assert not quiet.out.strip() or name == "doctor", (name, quiet.out)


def test_every_failure_is_json_too(world, adapter_merge, tmp_path):
    for words, code in (
        (("plan", "demo/nobody"), 5),
        (("plan", "a b"), 2),
        (("plan", "demo/adapter", "--no-such-option"), 2),
        (("run",), 2),
        (("verify", tmp_path / "nothing"), 5),
        (("merge", "demo/adapter", "-o", world.base), 2),
    ):
        ran = adapter_merge(*words, "--json")
        assert ran.code == code, ran.err
        assert json.loads(ran.out)["error"]["exit_code"] == code
        assert ran.err


def test_a_quiet_proof_names_what_failed_with_its_cause_and_nothing_else(world, adapter_merge, tmp_path):
    out = tmp_path / "out"
    assert adapter_merge("merge", "demo/adapter", "-o", out, "--verify", "files").code == 0
    edit_tensors(next(out.glob("*.safetensors")), lambda tensors: first(tensors, "proj").add_(1))
    ran = adapter_merge("verify", out, "--verify", "weights", "--quiet")
    assert (ran.code, ran.out) == (4, "")
    assert "touched:" in ran.err
    assert "  Most likely: " in ran.err
    assert "pass" not in ran.err


# --- published and proven -----------------------------------------------------------------------------------------


def run_json(adapter_merge: Command, *words: str) -> dict[str, object]:
    ran = adapter_merge("run", *words, "--json")
    assert ran.code == 0, ran.err
    return dict(json.loads(ran.out))


def test_a_merge_that_is_published_and_proven_is_said_to_be_so(world, adapter_merge):
    first_time = run_json(adapter_merge, "demo/adapter", "--verify", "weights")
    for more in ((), ("--dry-run",)):
        again = run_json(adapter_merge, "demo/adapter", *more)
        assert (again["status"], again["verified"]) == ("unchanged", True)
        revision = first_time["publication"]["revision"]
        assert again["publication"]["proof"] == {
            "verdict": "verified",
            "level": "weights",
            "report": f"{world.hub.url}/{MERGED}/blob/{revision}/verification.json",
        }
    report = httpx2.get(again["publication"]["proof"]["report"], follow_redirects=True).json()
    assert report["verdict"] == "verified"
    assert "Proven at level weights." in adapter_merge("run", "demo/adapter").out


def test_what_is_not_proven_is_not_said_to_be(world, adapter_merge):
    assert run_json(adapter_merge, "demo/adapter", "--dry-run")["verified"] is False
    run_json(adapter_merge, "demo/adapter", "--verify", "files")
    world.new_version("v2", seed=5)
    run_json(adapter_merge, "demo/adapter@v2", "--verify", "files")
    proposed = run_json(adapter_merge, "demo/adapter@v2")
    assert (proposed["status"], proposed["verified"], proposed["publication"]["proof"]["level"]) == (
        "unchanged",
        True,
        "files",
    )
    weights = next(name for name in world.api.list_repo_files(MERGED) if name.endswith(".safetensors"))
    world.api.upload_file(path_or_fileobj=b"other bytes", path_in_repo=weights, repo_id=MERGED, revision="refs/pr/1")
    changed = run_json(adapter_merge, "demo/adapter@v2")
    assert (changed["status"], changed["verified"]) == ("published", True), "what somebody changed is proposed anew"
    world.api.change_discussion_status(MERGED, 1, "closed")
    closed = run_json(adapter_merge, "demo/adapter@v2")
    assert (closed["status"], closed["verified"]) == ("unchanged", False), "what was declined is nowhere"


# --- compare ------------------------------------------------------------------------------------------------------


def test_compare_can_tell_by_its_exit_code(world, adapter_merge, tmp_path):
    other = tmp_path / "other"
    save_adapter(world.base, "llama", other, seed=9)
    name_base(other, "demo/base")
    for second, differs in ((world.adapter, 0), (other, 1)):
        assert adapter_merge("compare", world.adapter, second).code == 0
        told = adapter_merge("compare", world.adapter, second, "--exit-code")
        assert (told.code, bool(told.out)) == (differs, True)
        assert adapter_merge("compare", world.adapter, second, "--exit-code", "--json").code == differs
        silent = adapter_merge("compare", world.adapter, second, "--quiet")
        assert (silent.code, silent.out, silent.err) == (differs, "", ""), "--quiet implies it, as git's does"
    assert adapter_merge("compare", world.adapter, tmp_path / "nothing", "--exit-code").code == 5
