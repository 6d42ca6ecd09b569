"""Finished merges as folders, without merging anything, and the Hub as its owner sees it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import HfApi
from safetensors.numpy import save_file

from bot.card import render
from bot.devhub import DevHub
from bot.events import Emit, silent
from bot.hub import Hub
from bot.publish import publish
from bot.records import Json, Publication, Ref, Source
from bot.report_document import Document

BASE, ADAPTER, TARGET = "demo/base", "demo/adapter", "demo/merged"
SHA = "0123456789abcdef0123456789abcdef01234567"


def fingerprint(seed: int) -> str:
    return hashlib.sha256(b"%d" % seed).hexdigest()


def source(role: Any, repo: str | None, **more: Any) -> Source:
    """A pinned source, as far as a card looks at it."""
    config = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode()
    told: dict[str, Any] = {
        "role": role, "ref": Ref(text=repo or "./x", repo=repo), "repo": repo, "revision": None,
        "sha": SHA if repo else f"sha256:{SHA}{SHA[:24]}", "files": (), "headers": (),
        "texts": {"config.json": config} if role == "base" else {},
    }  # fmt: skip
    return Source(**(told | more))


def report(files: dict[str, str], *, seed: int = 1, verdict: str = "verified", **more: Any) -> Json:
    """A verification.json for these files."""
    inputs = {"base": {"repo": BASE, "sha": SHA}, "adapter": {"repo": ADAPTER, "sha": SHA}, "recipe": "1"}
    checks = [
        {"id": "touched", "status": "pass" if verdict == "verified" else "fail", "measured": "0 of 64 elements differ",
         "allowed": "0", "why": "Every merged element is correctly rounded.", "worst": [], "seconds": 0.1},
        {"id": "retention", "status": "pass", "measured": "0.998", "allowed": "≥ 0.9", "why": "", "worst": []},
    ]  # fmt: skip
    merge = {
        "method": "LoRA", "engine": "streaming", "dtype": "bfloat16", "fingerprint": fingerprint(seed),
        "options": {"dtype": "auto", "base_weights": "auto", "quantize": "none"},
        "tensors": {"merged": 1, "copied": 3}, "ranks": [8], "scalings": [2.0],
    }  # fmt: skip
    return {
        "schema": 1, "subject": {"files": files}, "inputs": inputs, "environment": {"torch": "2.13.0"}, "merge": merge,
        "checks": checks, "noise_floor": None, "not_run": [{"id": "full", "reason": "Too little memory."}],
        "verdict": verdict,
    } | more  # fmt: skip


def finished(
    folder: Path, *, seed: int = 1, shards: int = 2, target: str = TARGET, tag: str | None = None, **more: Any
) -> Json:
    """A folder as `merge` leaves it; its report. Another seed is another merge."""
    folder.mkdir(parents=True)
    for n in range(shards):
        name = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        save_file({f"w{n}": np.full((8, 8), seed, "f4")}, folder / name, {"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    document = report(files, seed=seed, **more)
    if tag:
        document["merge"]["tag"] = tag
    (folder / "verification.json").write_text(json.dumps(document))
    sources = {"base": source("base", BASE), "adapter": source("adapter", ADAPTER)}
    card = render(Document.of(document), target=target, **sources, license="mit")
    (folder / "README.md").write_text(card)
    return document


def deliver(folder: Path, document: Json, hub: Hub, *, emit: Emit = silent, **asked: Any) -> Publication:
    """`publish` with the action's defaults."""
    told = {"target": TARGET, "how": "auto", "private": "auto", "force": False, "tag": None} | asked
    return publish(folder, Document.of(document), hub=hub, emit=emit, **told)  # type: ignore[arg-type]


class Owner:
    """The Hub as the target's owner sees it, by the plain client."""

    def __init__(self, dev: DevHub) -> None:
        self.dev, self.api = dev, HfApi(dev.url, dev.token)

    def files(self, revision: str = "main", repo: str = TARGET) -> set[str]:
        return set(self.api.list_repo_files(repo, revision=revision)) - {".gitattributes"}

    def titles(self, revision: str = "main", repo: str = TARGET) -> list[str]:
        return [commit.title for commit in self.api.list_repo_commits(repo, revision=revision)]

    def pulls(self, repo: str = TARGET) -> list[Any]:
        return list(self.api.get_repo_discussions(repo, discussion_type="pull_request"))

    def put(self, name: str, text: bytes, repo: str = TARGET, *, lfs: bool = True) -> str:
        """Upload a file. Without `lfs`: one that would be stored in LFS as an ordinary one."""
        self.api.create_repo(repo, exist_ok=True)
        if not lfs:
            self.put(".gitattributes", f"{name} !filter\n".encode(), repo)
        return str(self.api.upload_file(path_or_fileobj=text, path_in_repo=name, repo_id=repo).oid)

    def squash(self, repo: str = TARGET) -> None:
        """The same files in a repo without history, as `super_squash_history` and copies of a repo leave them."""
        with tempfile.TemporaryDirectory() as kept:
            folder = self.api.snapshot_download(repo, local_dir=f"{kept}/files", cache_dir=f"{kept}/cache")
            shutil.rmtree(Path(folder) / ".cache")
            self.api.delete_repo(repo)
            self.api.create_repo(repo)
            self.api.upload_folder(repo_id=repo, folder_path=folder)

    def existing(self, repo: str = TARGET) -> str:
        """A public target that somebody has put a model into."""
        return self.put("model.safetensors", b"an older model", repo)
