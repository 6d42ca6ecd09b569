"""Tiny bases and adapters as folders and as repos of a local Hub, and a Hub object that talks to it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import HfApi
from safetensors.numpy import save_file

from bot.devhub import DevHub
from bot.errors import AdapterMergeError
from bot.hub import Hub, is_repo_id

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
INDEX = "model.safetensors.index.json"


def write_base(folder: Path, *, shards: int = 1) -> Path:
    """A base with a few small tensors, in one file or in several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    tensors = {f"layer.{n}.weight": np.full((8, 8), n, "f4") for n in range(4)}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for n in range(shards):
        name = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        part = {key: value for i, (key, value) in enumerate(tensors.items()) if i % shards == n}
        save_file(part, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1024}, "weight_map": weight_map}))
    return folder


def write_adapter(folder: Path, base: str = "demo/base", **config: Any) -> Path:
    """An adapter that names `base`."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": base} | config
    (folder / "adapter_config.json").write_text(json.dumps(told))
    named = f"base_model: {base}\n" if is_repo_id(base) else ""  # the Hub takes no other
    (folder / "README.md").write_text(f"---\n{named}library_name: peft\n---\n# An adapter\n")
    key = "base_model.model.layer.0"
    pair = {f"{key}.lora_A.weight": np.ones((2, 8), "f4"), f"{key}.lora_B.weight": np.ones((8, 2), "f4")}
    save_file(pair, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def put(dev: DevHub, repo: str, folder: Path, *, private: bool = False) -> str:
    """The folder as a repo of the default user; its sha."""
    api = HfApi(dev.url, dev.token)
    api.create_repo(repo, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo, folder_path=folder).oid)


def hub_client(dev: DevHub, tmp_path: Path, token: str | bool | None = None, **more: Any) -> Hub:
    """Our Hub object: explicit endpoint, token and cache, no waiting."""
    token = dev.token if token is None else token
    more = {"read_token": token, "write_token": token, "patience": ()} | more
    return Hub(endpoint=dev.url, cache_dir=tmp_path / "cache" / "hub", **more)


def two_sentences(error: AdapterMergeError, *, what: str, do: str) -> None:
    """Assert that the error says what happened and what to do, in words that contain these, and shows no token."""
    print(error, file=sys.stderr)
    assert what in error.what
    assert do in error.remedy
    assert error.what.endswith((".", "'")) or error.what[-1].isalnum() or error.what.endswith(")")
    assert error.remedy.rstrip().endswith((".", ")"))
    assert "hf_" not in str(error).replace("hf_…", "")
    assert "X-Amz" not in str(error)
    assert "Traceback" not in str(error)
