"""How fast each clone of the compiled loop merges bfloat16 weights on this processor, beside numpy, in one run.

    python bench/kernel.py [--rows 107] [--columns 4864] [--ranks 16 64] [--turns 40]

One thread; gigabytes of base weights a second, the best of many turns that the contenders take one after the other. A
small delta is a hundredth of the weights' size, as after a fine-tuning; a large one is of their size, as of random
matrices: more of its sums lie within their error bound of a rounding boundary, and each of those is computed again in
float64.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.pop("OPENBLAS_CORETYPE", None)  # a machine's workaround; it picks slow kernels
os.environ.pop("OPENBLAS_L2_SIZE", None)
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as in a merge, where two workers multiply at a time

import numpy as np
import processor

from bot.numerics.delta import Delta, make_delta
from bot.numerics.rounder import CLONES, Rounder
from bot.numerics.rounding import Array

SIZES = {"small": 0.01, "large": 1.0}  # of the delta, against the weights


def block(rows: int, columns: int, rank: int, size: float) -> tuple[Array, Delta]:
    """bfloat16 weights of standard deviation 0.02, and a delta of `size` times that."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((rows, columns)) * 0.02).astype(np.float32)
    left = (rng.standard_normal((rows, rank)) * 0.02 * size / rank**0.5).astype(np.float32)
    right = rng.standard_normal((rank, columns)).astype(np.float32)
    return (weight.view(np.uint32) >> 16).astype(np.uint16), make_delta([left], [right], [1.0], out="BF16")


def seconds(rounder: Rounder, weight: Array, delta: Delta, out: Array) -> float:
    began = time.perf_counter()
    rounder.add(weight, "BF16", delta, 0, out, "BF16")
    return time.perf_counter() - began


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=107)
    parser.add_argument("--columns", type=int, default=4864)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--turns", type=int, default=40)
    asked = parser.parse_args()
    ways: list[str | None] = [*CLONES, None]
    print(f"{processor.name()}; {asked.rows} × {asked.columns}; {time.strftime('%Y-%m-%d')}; GB/s\n")
    print("| rank, delta | " + " | ".join(way or "numpy" for way in ways) + " | again in float64 |")
    print("| --- |" + " --- |" * (len(ways) + 1))
    for rank in asked.ranks:
        for word, size in SIZES.items():
            weight, delta = block(asked.rows, asked.columns, rank, size)
            out, rounders = np.empty_like(weight), [Rounder(clone=way) for way in ways]
            turns = [[seconds(rounder, weight, delta, out) for rounder in rounders] for _ in range(asked.turns)]
            rates = [weight.nbytes / min(column) / 1e9 for column in zip(*turns, strict=True)]
            again = rounders[0].tally.float64 / asked.turns / weight.size
            print(f"| {rank}, {word} | " + " | ".join(f"{rate:.2f}" for rate in rates) + f" | {again:.2%} |")


if __name__ == "__main__":
    main()
