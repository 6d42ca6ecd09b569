"""A proof reads no byte of its base twice: what is compared is hashed of the same reads, and every byte is hashed once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from bot import input_files
from bot.checks.folder import hashing
from bot.errors import Damaged, Refused
from bot.events import silent
from bot.input_files import holding
from bot.pipeline import run
from bot.pull import fetch, hashes, parse_ref, pin
from bot.records import Options, Ref, Request
from bot.reverify import reverify
from tests.pull.given import put, write_adapter, write_base

LEVELS = ("files", "weights")
SHARDS = tuple(f"model-0000{n}-of-00002.safetensors" for n in (1, 2))


@pytest.fixture
def folders(hub, tmp_path: Path) -> dict[str, Path]:
    """A base in a folder, an adapter, and what was merged of them."""
    base, adapter = write_base(tmp_path / "base", shards=2), write_adapter(tmp_path / "adapter")
    request = Request(
        adapter=parse_ref(str(adapter)), base=parse_ref(str(base)), output=tmp_path / "merged", publish="none",
        options=Options(verify="files"),
    )  # fmt: skip
    assert run(request, hub, silent).status == "merged"
    return {"base": base, "adapter": adapter, "merged": tmp_path / "merged"}


@pytest.fixture
def hashed(monkeypatch) -> list[Path]:
    """Every file that is read from one end to the other for its hash alone."""
    paths: list[Path] = []
    for module in (hashes, hashing):
        real = module._sha256
        monkeypatch.setattr(module, "_sha256", lambda path, read, real=real: (paths.append(path), real(path, read))[1])
    examine = input_files.Keeper._hash
    monkeypatch.setattr(
        input_files.Keeper, "_hash", lambda self, held, *more: (paths.append(held.path), examine(self, held, *more))[1]
    )
    return paths


def proven(folders: dict[str, Path], hub, level: str):
    given = (parse_ref(str(folders[name])) for name in ("merged", "base"))
    return reverify(*given, [parse_ref(str(folders["adapter"]))], Options(verify=level), hub, silent)


@pytest.mark.parametrize("level", LEVELS)
def test_a_base_in_a_folder_has_the_name_that_its_merge_gave_it(level: str, hub, folders) -> None:
    report = proven(folders, hub, level)
    assert report.verdict == "verified"
    stated = json.loads((folders["merged"] / "verification.json").read_text())["inputs"]
    assert report.document.inputs.json == stated
    assert stated["base"]["sha"].startswith("sha256:")


def test_weights_that_are_compared_are_not_read_for_their_hash_alone(hub, folders, hashed) -> None:
    assert proven(folders, hub, "weights").verdict == "verified"
    assert hashed
    assert not [path for path in hashed if path.name in SHARDS]


def test_weights_that_are_not_compared_are_hashed_once(hub, folders, hashed) -> None:
    assert proven(folders, hub, "files").verdict == "verified"
    weights = [path for path in hashed if path.name in SHARDS]
    assert sorted(weights) == sorted(folders[name] / shard for name in ("base", "merged") for shard in SHARDS)


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_of_the_inputs_is_hashed_twice(level: str, hub, folders, hashed) -> None:
    assert proven(folders, hub, level).verdict == "verified"
    inputs = [path for path in hashed if path.parent != folders["merged"]]
    assert folders["adapter"] / "adapter_model.safetensors" in inputs
    assert len(inputs) == len(set(inputs))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shard", SHARDS)
def test_another_base_than_the_reports_is_named_by_its_hash(level: str, shard: str, hub, folders) -> None:
    """One whose numbers are the same, too: with a word more in the header it is another base."""
    path = folders["base"] / shard
    save_file(load_file(path), path, metadata={"format": "pt", "another": "file"})
    report = proven(folders, hub, level)
    assert report.verdict == "not-verified"
    (failing,) = [finding for finding in report.findings if finding.status == "fail"]
    assert failing.id == "pins"
    names = sorted(path.name for path in folders["base"].iterdir() if path.name != "README.md")
    own = [[name, hashlib.sha256((folders["base"] / name).read_bytes()).hexdigest()] for name in names]
    sha = hashlib.sha256(json.dumps(own, separators=(",", ":")).encode()).hexdigest()
    assert sha in str(failing)


def test_a_repos_weights_are_held_to_what_it_states_by_what_was_compared(hub, dev, tmp_path, hashed) -> None:
    put(dev, "demo/base", write_base(tmp_path / "base", shards=2))
    put(dev, "demo/adapter", write_adapter(tmp_path / "adapter"))
    request = Request(
        adapter=Ref(text="demo/adapter", repo="demo/adapter"), output=tmp_path / "merged", publish="none",
        options=Options(verify="files"),
    )  # fmt: skip
    run(request, hub, silent)
    hashed.clear()
    assert reverify(parse_ref(str(tmp_path / "merged")), None, [], Options(verify="weights"), hub, silent)
    assert not [path for path in hashed if path.name in SHARDS]


def test_what_somebody_else_was_to_hash_is_hashed_where_that_failed(hub, folders) -> None:
    """The damage may be why it failed, and is told instead."""
    request = Request(adapter=parse_ref(str(folders["adapter"])), base=parse_ref(str(folders["base"])))
    sources = pin(request, hub, silent)
    local = fetch(sources, {"base": SHARDS, "adapter": ()}, hub, silent)
    path = folders["base"] / SHARDS[0]
    held = next(held for held in local.files if held.path == path)
    wrong = input_files.Held(**{**vars(held), "sha256": "0" * 64})
    with pytest.raises(Damaged, match=SHARDS[0]), holding([wrong]) as keeper:  # noqa: PT012
        keeper.expect([path])
        raise Refused("something else", remedy="")
