"""Links in folders: none leads out, but for those of the Hub's cache, and what those are called is not believed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from bot.errors import AdapterMergeError, Damaged, NotVerified, Refused
from bot.events import silent
from bot.merged_folder import compare_models, publish_folder
from bot.pipeline import plan_merge, run
from bot.pull import parse_ref
from bot.records import Options, Ref, Request
from bot.reverify import reverify
from bot.untrusted.links import input_files
from tests.pull.given import write_adapter, write_base

SECRET = "HF_TOKEN=hf_secret"
FILES = Options(verify="files")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file, and a folder of files, that are nobody's input."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "secret").write_text(SECRET)
    (folder / "config.json").write_text("{}")
    return folder / "secret"


def made(tmp_path: Path) -> Request:
    write_base(tmp_path / "base", shards=2)
    write_adapter(tmp_path / "adapter")
    given = {name: Ref(text=f"./{name}", folder=tmp_path / name) for name in ("base", "adapter")}
    return Request(**given, output=tmp_path / "merged", publish="none", options=FILES)


def link(path: Path, target: Path | str) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def chained(folder: Path, secret: Path) -> None:
    link(folder / "first", "second")
    link(folder / "second", secret)


def through_a_folder(folder: Path, secret: Path) -> None:
    link(folder / "nested" / "LICENSE", Path("..") / ".." / "elsewhere" / "secret")


def to_the_checkouts_config(folder: Path, secret: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text(SECRET)
    link(folder / "NOTICE", Path(".git") / "config")


def called_like_a_blob(folder: Path, secret: Path) -> None:
    blob = folder.parent / "blobs" / ("0" * 64)
    blob.parent.mkdir()
    blob.write_text(SECRET)
    link(folder / "LICENSE", blob)


def through_a_blob(folder: Path, secret: Path) -> None:
    """A clone that is laid out as a cache, with a blob that is a link itself."""
    blob = folder.parent / "blobs" / hashlib.sha256(SECRET.encode()).hexdigest()
    link(blob, secret)
    link(folder / "LICENSE", blob)


BAD: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "a license": ("LICENSE", lambda folder, secret: link(folder / "LICENSE", secret)),
    "the environment": ("LICENSE", lambda folder, secret: link(folder / "LICENSE", "/proc/self/environ")),
    "a card": ("README.md", lambda folder, secret: link(folder / "README.md", secret)),
    "the weights": ("model.safetensors", lambda folder, secret: link(folder / "model.safetensors", secret)),
    "a file of no use": ("notes.txt", lambda folder, secret: link(folder / "notes.txt", secret)),
    "through ..": ("NOTICE", lambda folder, secret: link(folder / "NOTICE", "../elsewhere/secret")),
    "a folder": ("1_Dense", lambda folder, secret: link(folder / "1_Dense", secret.parent)),
    "the parent": ("nested/up", lambda folder, secret: link(folder / "nested" / "up", "../..")),
    "a link to a link": ("first", chained),
    "from a nested folder": ("nested/LICENSE", through_a_folder),
    "a hidden file": ("NOTICE", to_the_checkouts_config),
    "a blob by name only": ("LICENSE", called_like_a_blob),
    "a blob that is a link": ("LICENSE", through_a_blob),
}
DANGLING: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "to nothing": ("LICENSE", lambda folder, secret: link(folder / "LICENSE", "gone")),
    "in a circle": ("LICENSE", lambda folder, secret: link(folder / "LICENSE", "LICENSE")),
}


@pytest.mark.parametrize("role", ["adapter", "base"])
@pytest.mark.parametrize("what", [*BAD, *DANGLING])
def test_no_merge_follows_a_link_out_of_an_input(what: str, role: str, hub, outside, tmp_path) -> None:
    asked, (name, do) = made(tmp_path), (BAD | DANGLING)[what]
    do(tmp_path / role, outside)
    with pytest.raises(Refused, match=f"{name} in {role} is a link that leads"):
        plan_merge(asked, hub, silent)
    with pytest.raises(Refused, match=f"{name} in {role} is a link that leads"):
        run(asked, hub, silent)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("what", BAD)
def test_no_proof_no_comparison_and_no_publication_follows_a_link(what: str, hub, outside, tmp_path) -> None:
    run(made(tmp_path), hub, silent)
    merged, (name, do) = tmp_path / "merged", BAD[what]
    do(merged, outside)
    base, adapter, ref = (parse_ref(str(tmp_path / folder)) for folder in ("base", "adapter", "merged"))
    with pytest.raises(Refused, match=f"{name} in merged is a link that leads out"):
        reverify(ref, base, (adapter,), FILES, hub, silent)
    with pytest.raises(Refused, match=f"{name} in merged is a link that leads out"):
        compare_models(base, ref, hub, silent)
    with pytest.raises(NotVerified, match="is a link, not a file"):
        publish_folder(merged, Request(adapter=ref, target="demo/merged"), hub, silent)


@pytest.mark.parametrize("what", DANGLING)
def test_a_proof_names_a_link_to_nothing(what: str, hub, outside, tmp_path) -> None:
    run(made(tmp_path), hub, silent)
    DANGLING[what][1](tmp_path / "merged", outside)
    base, adapter, ref = (parse_ref(str(tmp_path / folder)) for folder in ("base", "adapter", "merged"))
    report = reverify(ref, base, (adapter,), FILES, hub, silent)
    assert "leftovers" in {found.id for found in report.findings if found.status == "fail"}


def test_a_card_that_is_a_link_is_not_read_into_the_published_card(hub, dev, outside, tmp_path) -> None:
    run(made(tmp_path), hub, silent)
    link(tmp_path / "merged" / "README.md", outside)
    with pytest.raises(AdapterMergeError, match=r"README.md in .* is a link"):
        publish_folder(tmp_path / "merged", Request(adapter=parse_ref("./x"), target="demo/merged"), hub, silent)
    assert not [path for method, path, _ in dev.requests if method == "POST"]


def test_of_several_adapters_none_has_a_link(hub, outside, tmp_path) -> None:
    asked = made(tmp_path)
    other = write_adapter(tmp_path / "other")
    link(other / "LICENSE", outside)
    several = Request(**vars(asked) | {"more": (Ref(text="./other", folder=other),)})
    with pytest.raises(Refused, match="LICENSE in other is a link that leads out"):
        run(several, hub, silent)


def test_a_link_within_its_folder_is_the_file_that_it_leads_to(hub, outside, tmp_path) -> None:
    asked, base = made(tmp_path), tmp_path / "base"
    (base / "texts").mkdir()
    (base / "texts" / "terms.txt").write_text("MIT")
    link(base / "LICENSE", "texts/terms.txt")
    link(base / "latest", "texts")
    assert run(asked, hub, silent).status == "merged"
    assert (tmp_path / "merged" / "LICENSE").read_text() == "MIT"
    assert not (tmp_path / "merged" / "LICENSE").is_symlink()


def test_a_folder_that_is_named_by_a_link_is_that_folder(hub, tmp_path) -> None:
    asked = made(tmp_path)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    link(tmp_path / "base", "elsewhere")
    assert run(asked, hub, silent).status == "merged"


def test_a_blob_in_a_folder_laid_out_as_a_cache_is_not_what_it_is_called(hub, tmp_path) -> None:
    asked, cache = made(tmp_path), tmp_path / "models--demo--base"
    snapshot = cache / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in (tmp_path / "base").iterdir():
        is_large = path.suffix == ".safetensors"
        blob = (
            cache
            / "blobs"
            / ("0" * 64 if is_large and "2-of" in path.name else hashlib.sha256(path.read_bytes()).hexdigest())
        )
        blob.write_bytes(path.read_bytes())
        link(snapshot / path.name, blob)
    assert input_files(snapshot).keys() == {path.name for path in (tmp_path / "base").iterdir()}
    with pytest.raises(Damaged, match=r"model-00002-of-00002.safetensors of ./cache does not hold the bytes"):
        run(Request(**vars(asked) | {"base": Ref(text="./cache", folder=snapshot)}), hub, silent)
    assert not (tmp_path / "merged").exists()
