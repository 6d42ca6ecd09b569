"""A merge by weight files (`run --disk shards`) against its three stages alone, on a local Hub whose rates are limited.

    python bench/stream.py [--shards 8] [--megabytes 60] [--down 20] [--up 20]

Builds a model of so many weight files of about so many megabytes, and a LoRA (r=4) on all its linears. Then measures, each by itself:
fetching base and adapter (the Hub's client), merging and proving it on the disk (`merge --verify weights`), and sending the result
(the Hub's client); and then the whole of it one weight file after the other. Rates are megabytes a second, for each direction.
Prints wall seconds, the ratio to the slowest stage, the most bytes that lay on the disk beside the inputs and the Hub, the peak
resident set, the processor seconds of the run and of the local Hub, which shares its cores, and whether the sha256 of every weight
file is that of the merge on the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # beside this file lies bot.py, which is another one
os.environ["HF_HUB_DISABLE_XET"] = "1"  # the local Hub then sends and takes whole files
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch  # noqa: E402
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download  # noqa: E402
from starlette.responses import FileResponse  # noqa: E402

from bot.devhub import DevHub  # noqa: E402
from bot.devhub.web import file_routes, lfs_routes  # noqa: E402

MEGABYTE = 1_000_000
SAMPLE = 0.02  # seconds between two looks at the disk
CATCHES_UP = 0.1  # seconds: what a busy processor has kept from a line, and the line's buffers would have held


LAUNCH = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


class Line:
    """A line of so many bytes a second, shared by all that goes over it. What it carries late it does not make up for: at most
    CATCHES_UP seconds."""

    def __init__(self, rate: float) -> None:
        self._rate, self._free, self._lock = rate, 0.0, threading.Lock()

    def wait_for(self, count: int) -> float:
        """Seconds until so many bytes more have gone over it."""
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - CATCHES_UP) + count / self._rate
            return max(0.0, self._free - now)


def limit_rates(down: float, up: float) -> None:
    """Have the local Hub send and take at these rates, in bytes a second."""
    receive, line_down, line_up = lfs_routes._write, Line(down), Line(up)

    def slow_write(descriptor: int, block: bytes, at: int, digest: Any) -> int:
        written = receive(descriptor, block, at, digest)
        time.sleep(line_up.wait_for(len(block)))
        return written

    lfs_routes._write = slow_write
    handle = FileResponse._handle_simple

    async def slow_send(self: Any, send: Any, *rest: Any) -> None:
        async def paced(message: Any) -> None:
            await send(message)
            await asyncio.sleep(line_down.wait_for(len(message.get("body", b""))))

        await handle(self, paced, *rest)

    file_routes.File._handle_simple = slow_send  # type: ignore[method-assign]


def build(folder: Path, shards: int, megabytes: int) -> None:
    """Base and adapter: two decoder layers to each weight file. The adapter is about as large beside them as r=16 is beside a model of
    70B: under a hundredth."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    wide = int((megabytes * MEGABYTE / 2 / 2 / 14) ** 0.5) // 64 * 64
    config = AutoConfig.for_model(
        "llama", hidden_size=wide, intermediate_size=3 * wide, num_hidden_layers=2 * shards, num_attention_heads=wide // 64,
        num_key_value_heads=wide // 64, vocab_size=512, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size=f"{int(megabytes * 1.02)}MB")
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"), autocast_adapter_dtype=False
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    adapted.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").write_text("---\nbase_model: demo/base\n---\n")
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "demo/base"}))
    (folder / "base" / "README.md").write_text("---\nlicense: mit\n---\n")


class DiskWatch:
    """The most bytes that the files below a folder took on the disk."""

    def __init__(self, folder: Path) -> None:
        self.most, self._folder, self._stopped = 0, folder, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> DiskWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stopped.wait(SAMPLE):
            total = 0
            for parent, _, names in os.walk(self._folder):
                for name in names:
                    try:
                        total += os.lstat(Path(parent) / name).st_blocks * 512
                    except OSError:
                        continue
            self.most = max(self.most, total)


def command(*words: str, home: Path, hub: DevHub) -> tuple[float, int, float]:
    """(wall seconds, peak resident set in bytes, processor seconds with the Hub's) of adapter-merge in a process of its own."""
    given = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(home)}
    # By way of a small process: a child of this one, which holds a model, would begin with its resident set.
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCH, sys.executable, "-m", "bot", *words]
    began, before = time.monotonic(), sum(os.times()[:4])  # the Hub runs in threads of this process
    ran = subprocess.run(launcher, env=given, stdout=subprocess.PIPE, check=True, text=True)
    return time.monotonic() - began, int(ran.stdout.split()[-1]) * 1024, sum(os.times()[:4]) - before


def sha256s(api: HfApi, repo: str) -> dict[str, str]:
    """Of every weight file, as the Hub has it."""
    return {file.path: file.lfs.sha256 for file in api.list_repo_tree(repo) if getattr(file, "lfs", None)}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--shards", type=int, default=8)
    asked.add_argument("--megabytes", type=int, default=60)
    asked.add_argument("--down", type=float, default=20)
    asked.add_argument("--up", type=float, default=20)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-stream-") as place:
        work = Path(place)
        build(work, given.shards, given.megabytes)
        weights = sorted((work / "base").glob("*.safetensors"))
        sizes = [path.stat().st_size for path in weights]
        print(f"{platform.machine()}, {os.cpu_count()} cores; {len(weights)} weight files, {sum(sizes) / MEGABYTE:.0f} MB, "
              f"the largest {max(sizes) / MEGABYTE:.1f} MB; {given.down} MB/s down, {given.up} MB/s up")  # fmt: skip
        with DevHub(work / "hub") as hub:
            api = HfApi(endpoint=hub.url, token=hub.token)
            for repo in ("base", "adapter", "sent"):
                api.create_repo(f"demo/{repo}")
            for repo in ("base", "adapter"):
                api.upload_folder(repo_id=f"demo/{repo}", folder_path=work / repo)
            merge = command("merge", str(work / "adapter"), "--base", str(work / "base"), "--output", str(work / "merged"),
                            "--verify", "weights", "--quiet", home=work / "home0", hub=hub)  # fmt: skip
            limit_rates(given.down * MEGABYTE, given.up * MEGABYTE)
            began = time.monotonic()
            for repo in ("base", "adapter"):
                snapshot_download(
                    f"demo/{repo}", endpoint=hub.url, token=hub.token, cache_dir=work / "cache", max_workers=1
                )
            fetch = time.monotonic() - began
            began = time.monotonic()
            for path in sorted((work / "merged").glob("*.safetensors")):
                api.preupload_lfs_files("demo/sent", additions=[CommitOperationAdd(path.name, str(path))])
            send = time.monotonic() - began
            with DiskWatch(work / "home1") as disk:
                shards = command("run", "demo/adapter", "--to", "demo/merged", "--disk", "shards", "--verify", "weights", "--quiet",
                                 home=work / "home1", hub=hub)  # fmt: skip
            import hashlib

            whole = {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in (work / "merged").glob("*.safetensors")
            }
            slowest, cores = max(fetch, merge[0], send), shards[2] / (os.cpu_count() or 1)
            print(f"fetch alone {fetch:.1f} s, merge and prove alone {merge[0]:.1f} s, send alone {send:.1f} s")
            print(f"one weight file after the other: {shards[0]:.1f} s, {shards[0] / slowest:.2f} × the slowest stage, "
                  f"{shards[0] / (fetch + merge[0] + send):.2f} × all three; disk {disk.most / MEGABYTE:.0f} MB at most "
                  f"({disk.most / max(sizes):.2f} weight files), memory {shards[1] / 2**20:.0f} MiB at most")  # fmt: skip
            print(f"{shards[2]:.1f} processor seconds of the run and of the Hub: {cores:.1f} s of all cores, a fourth stage beside "
                  f"this Hub; {shards[0] / max(slowest, cores):.2f} × the slowest of all four")  # fmt: skip
            print("the same sha256:", {k: v for k, v in sha256s(api, "demo/merged").items() if k in whole} == whole)


if __name__ == "__main__":
    main()
