"""How often the check `behaviour` refuses a merge without one wrong element: tiny models, seed after seed, in one process.

    nice python bench/false_alarms.py [--first 0] [--seeds 100] [--architectures llama,mixtral,…]

Every trial makes a base and a LoRA on all its Linear layers (its size by the seed: from a delta that bfloat16 all but loses
to one that it keeps), merges them with the streaming engine, and asks the workers of the full proof, without their
processes. A line of JSON for each trial goes to standard output, a table to standard error. About a second of a core for
each trial, 20 minutes in all.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.factory import save_adapter, save_base
from tests.faults.held import found, hold, job_of
from tests.steps import merge_folders

ARCHITECTURES = ("llama", "qwen2", "gpt2", "t5", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_moe", "glm4_moe")
SIZES = (0.0001, 0.0005, 0.003, 0.05)  # standard deviations of B


def trial_of(architecture: str, seed: int) -> dict[str, Any]:
    """One exact merge, and what is found of it."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        base = save_base(architecture, work / "base", seed=seed)
        size = SIZES[seed % len(SIZES)]
        adapter = save_adapter(base, architecture, work / "adapter", seed=seed + 1, size=size)
        job = job_of(base, adapter, merge_folders(base, adapter, work / "merged"))
        trial = first = hold(job)
        if not trial.settled:
            trial = hold(job.with_more())
        finding = found(trial)
        floor = first.noise_floor or {}
        alone = replace(first.ratio, nearest=None)
        return {
            "architecture": architecture, "seed": seed, "size": size, "status": finding.status, "k": floor["ratio"],
            "nearest": floor["nearest"], "error": first.ratio.error, "beyond_alone": alone.k > alone.limit,
            "effect_lost": floor["merged"] / floor["adapter"], "flipped": (floor["routing"] or {}).get("flipped"),
            "rounds": 1 + (trial is not first), "why": finding.why if finding.status != "pass" else "",
        }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each architecture."""
    lines = ["| architecture | trials | K, median | K, largest | K > 1 | by the controls alone refused | refused |",
             "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for name in dict.fromkeys(row["architecture"] for row in rows):
        own = [row for row in rows if row["architecture"] == name]
        ks = sorted(row["k"] for row in own)
        counts = (
            sum(k > 1 for k in ks),
            sum(row["beyond_alone"] for row in own),
            sum(r["status"] != "pass" for r in own),
        )
        lines.append(
            f"| {name} | {len(own)} | {ks[len(ks) // 2]:.2f} | {ks[-1]:.2f} | " + " | ".join(map(str, counts)) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """All trials; a line of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for seed in range(given.first, given.first + given.seeds):
        for architecture in given.architectures.split(","):
            rows.append(trial_of(architecture, seed))
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
