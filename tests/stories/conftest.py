"""A local Hub with a tiny base and an adapter on it, and the command in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.cli import _guarded
from bot.devhub import DevHub
from tests.factory import save_adapter, save_base, save_card, save_tokenizer


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ran]


@dataclass(frozen=True)
class World:
    """A Hub that holds demo/base and demo/adapter (tag v1), and the folders they came from."""

    hub: DevHub
    api: HfApi
    base: Path
    adapter: Path

    def new_version(self, tag: str, *, seed: int) -> str:
        """Upload another adapter and tag it; its commit."""
        folder = self.adapter.with_name(f"adapter-{tag}")
        save_adapter(self.base, "llama", folder, seed=seed)
        name_base(folder, "demo/base")
        sha = self.api.upload_folder(repo_id="demo/adapter", folder_path=folder).oid
        self.api.create_tag("demo/adapter", tag=tag)
        return sha

    def answers(self) -> int:
        """How many requests the Hub has answered."""
        return len(self.hub.requests)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, adapter): a sharded bf16 llama with tokenizer, template, license; a LoRA with a card."""
    root = tmp_path_factory.mktemp("tiny")
    base = save_base("llama", root / "base", shard_size="60KB")
    save_card(save_tokenizer(base), license="mit", pipeline_tag="text-generation")
    (base / "LICENSE").write_text("MIT")
    adapter = save_adapter(base, "llama", root / "adapter")
    save_card(adapter, license="mit", base_model="demo/base", library_name="peft")
    name_base(adapter, "demo/base")
    return base, adapter


def name_base(adapter: Path, name: str) -> None:
    """Let the adapter's config name its base."""
    import json

    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))


@pytest.fixture
def world(tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    base, adapter = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in tiny)
    with DevHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        api = HfApi(endpoint=hub.url, token=hub.token)
        for repo, folder in (("demo/base", base), ("demo/adapter", adapter)):
            api.create_repo(repo)
            api.upload_folder(repo_id=repo, folder_path=folder)
        api.create_tag("demo/adapter", tag="v1")
        yield World(hub, api, base, adapter)


@pytest.fixture
def adapter_merge(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command as the command line does, and read what a person would."""

    def run(*arguments: str | Path) -> Ran:
        capfd.readouterr()
        code = _guarded([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
