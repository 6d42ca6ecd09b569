"""How the demo ends: what it published is still there, and the command that it prints shows it."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import click
import pytest
from huggingface_hub import HfApi

from bot.cli import cli
from bot.demo import story
from bot.devhub import DevHub
from bot.errors import Usage


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A demo's folder, with spaces in its path, of a Hub that has stopped."""
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    folder = tmp_path / "my own demo"
    with DevHub(folder) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo(story.MERGED)
        api.upload_file(repo_id=story.MERGED, path_in_repo="verification.json", path_or_fileobj=b"{}")
        api.create_pull_request(story.MERGED, title="Version 2")
        api.create_repo(story.ADAPTER)
        api.create_discussion(story.ADAPTER, title="Merged")
    return folder


@pytest.mark.parametrize("started", ["script", "module"])
def test_the_command_that_the_demo_prints_serves_what_it_published(
    kept: Path, started: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path(sys.executable).with_name("adapter-merge")
    monkeypatch.setattr(sys, "argv", [str(script if started == "script" else Path(story.__file__)), "demo"])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # as after `make demo`: .venv/bin is on nobody's path
    story._ending(kept, 1.0)
    printed = capsys.readouterr().out
    (command,) = re.findall(r"^ +(.* hub .*)$", printed, re.MULTILINE)
    addresses = re.findall(r"http\S+", printed)
    assert len(addresses) == 3
    serving = subprocess.Popen(f"exec {command} --port 0", shell=True, stdout=subprocess.PIPE, text=True)
    try:
        assert serving.stdout is not None
        url = re.findall(r"http://[\d.:]+", serving.stdout.readline())[0]
        for address in addresses:
            assert urllib.request.urlopen(address.replace(f"http://127.0.0.1:{story.PORT}", url)).status == 200
    finally:
        serving.terminate()
        serving.communicate()


def test_the_addresses_that_the_demo_prints_are_of_the_port_that_hub_takes() -> None:
    port = next(parameter for parameter in cli.commands["hub"].params if parameter.name == "port")
    assert port.get_default(click.Context(cli.commands["hub"])) == story.PORT


def test_a_demo_keeps_its_hub_beside_the_download_cache_instead_of_the_last_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    for name in ("first", "second"):
        with story._folder(None) as (root, kept):
            (root / "hub").mkdir()
            (root / "hub" / name).touch()
        assert kept == tmp_path / "hf" / "adapter-merge" / "demo"
        assert [path.name for path in kept.iterdir()] == [name]
    assert not root.exists()


def test_a_demo_that_failed_leaves_what_was_kept_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    (tmp_path / "hf" / "adapter-merge" / "demo" / "earlier").mkdir(parents=True)
    with pytest.raises(story.DemoFailed), story._folder(None):
        raise story.DemoFailed("It failed.", remedy="Please report this.")
    assert (tmp_path / "hf" / "adapter-merge" / "demo" / "earlier").is_dir()


def test_a_folder_of_the_users_own_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(Usage, match="is not empty"), story._folder(tmp_path):
        raise AssertionError("the demo began")
    assert (tmp_path / "mine").exists()


def test_where_no_cache_can_be_written_the_demo_keeps_its_hub_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file" / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert story._demo_folder().parent == tmp_path
