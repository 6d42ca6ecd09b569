"""A merge that no machine does alone, shared out over Hugging Face Jobs; the one commit is made here.

    python deploy/huge_jobs.py owner/adapter --to owner/merged --parts 8 [--base owner/base] [--flavor cpu-upgrade]

Each Job makes, proves and sends a part of the weight files, and leaves its receipt in the private repo `<target>-receipts`, which
is deleted at the end. A Job that fails is started again, `--tries` times at most. HF_TOKEN writes to the target and starts Jobs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from huggingface_hub import HfApi, get_token, snapshot_download

from bot import __version__

IMAGE = f"ghcr.io/adapter-merge/adapter-merge:{__version__}"
ENDED = ("COMPLETED", "ERROR", "CANCELED", "DELETED")


def pinned(adapter: str, base: str | None) -> tuple[str, str, int]:
    """Adapter and base at their commits, so that every Job merges the same, and the number of weight files."""
    command = [
        sys.executable,
        "-m",
        "bot",
        "plan",
        adapter,
        *(["--base", base] if base else []),
        "--disk",
        "shards",
        "--json",
    ]
    plan = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    names = ["/".join(filter(None, (plan[role]["repo"], plan[role].get("subfolder")))) for role in ("adapter", "base")]
    return f"{names[0]}@{plan['adapter']['sha']}", f"{names[1]}@{plan['base']['sha']}", len(plan["shards"])


def main() -> int:
    """Start, wait, finish; the exit code of `finish`."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("adapter")
    asked.add_argument("--to", required=True)
    asked.add_argument("--base")
    asked.add_argument("--parts", type=int, default=8)
    asked.add_argument("--flavor", default="cpu-basic")
    asked.add_argument("--image", default=IMAGE)
    asked.add_argument("--timeout", default="6h")
    asked.add_argument("--tries", type=int, default=3)
    asked.add_argument("--pause", type=float, default=20.0, help="Seconds between two looks at the Jobs.")
    given = asked.parse_args()
    api, receipts = HfApi(), f"{given.to}-receipts"
    adapter, base, files = pinned(given.adapter, given.base)
    parts = max(1, min(given.parts, files))
    api.create_repo(receipts, private=True, exist_ok=True)

    def start(number: int) -> str:
        command = ["python", "-m", "bot.dispatch.part_entry", f"{number}/{parts}", receipts, adapter, "--base", base,
                   "--to", given.to, "--verify", "weights"]  # fmt: skip
        job = api.run_job(image=given.image, command=command, secrets={"HF_TOKEN": get_token()}, flavor=given.flavor,
                          timeout=given.timeout)  # fmt: skip
        print(f"part {number}/{parts}: {job.id}", flush=True)
        return str(job.id)

    running, tries = {number: start(number) for number in range(1, parts + 1)}, dict.fromkeys(range(1, parts + 1), 1)
    while running:
        time.sleep(given.pause)
        for number, job in list(running.items()):
            stage = str(
                getattr(api.inspect_job(job_id=job).status.stage, "value", api.inspect_job(job_id=job).status.stage)
            )
            if stage not in ENDED:
                continue
            print(f"part {number}/{parts}: {stage.lower()}", flush=True)
            del running[number]
            if stage != "COMPLETED" and tries[number] < given.tries:
                tries[number] += 1
                running[number] = start(number)
    folder = Path(snapshot_download(receipts, allow_patterns="receipt-*.json"))
    paths = [str(path) for path in sorted(folder.glob("receipt-*.json"))]
    if not paths:
        print("No part left a receipt: the merge was there already, or every Job failed.", file=sys.stderr)
        return 1
    code = subprocess.run([sys.executable, "-m", "bot", "finish", *paths]).returncode
    if code == 0:
        api.delete_repo(receipts)
    return code


if __name__ == "__main__":
    sys.exit(main())
