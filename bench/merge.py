"""How long a merge takes and how much memory, side by side with `cp` and the PEFT script, in one run on this machine.

    python bench/merge.py [--shape qwen2.5-0.5b] [--runs 5] [--folder DIR]

Every figure is a whole process, start to exit, warm page cache. The contenders take turns, so that a slow moment of the
machine meets all of them; medians are printed, and the ratio to `cp` and to PEFT. Memory is the peak resident set of the
largest process (wait4).
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from shapes import SHAPES, make

HERE = Path(__file__).parent
Figure = tuple[float, float]  # seconds, MiB


def contenders(base: Path, adapter: Path, output: Path) -> dict[str, list[str]]:
    """Name → command. Each makes `output`."""
    ours = [sys.executable, "-m", "bot", "merge", str(adapter), "--base", str(base), "--output", str(output), "--quiet"]
    return {
        "cp": ["cp", "-r", str(base), str(output)],
        "PEFT load-merge-save": [sys.executable, str(HERE / "peft_script.py"), str(base), str(adapter), str(output)],
        "adapter-merge --verify files": [*ours, "--verify", "files"],
        "adapter-merge --verify weights": [*ours, "--verify", "weights"],
    }


def measure(command: list[str], output: Path) -> Figure:
    """Run one command to its end. Raises RuntimeError when it fails or leaves no weights."""
    shutil.rmtree(output, ignore_errors=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parent)}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status or not list(output.glob("*.safetensors")):
            log.seek(0)
            raise RuntimeError(f"{command} failed: {log.read()[-2000:].decode()}")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "adapter-merge-bench")
    asked = parser.parse_args()
    base, adapter = make(asked.shape, asked.folder)
    output = asked.folder / "output"
    commands = contenders(base, adapter, output)
    figures: dict[str, list[Figure]] = {name: [] for name in commands}
    for turn in range(asked.runs + 1):  # the first turn warms the cache and is not counted
        for name, command in commands.items():
            figure = measure(command, output)
            if turn:
                figures[name].append(figure)
    shutil.rmtree(output, ignore_errors=True)
    report(asked.shape, base, figures)


def report(shape: str, base: Path, figures: dict[str, list[Figure]]) -> None:
    """Print medians, spreads and ratios."""
    size = sum(path.stat().st_size for path in base.glob("*.safetensors")) / 1e9
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft", "safetensors")
    )
    print(f"{shape}, {size:.2f} GB; {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()};")
    print(f"{versions}; {time.strftime('%Y-%m-%d')}; {len(figures['cp'])} runs each\n")
    print("| | seconds, median (min to max) | peak MiB | × cp | × PEFT |\n| --- | --- | --- | --- | --- |")
    medians = {name: statistics.median(seconds for seconds, _ in runs) for name, runs in figures.items()}
    peft = medians["PEFT load-merge-save"]
    for name, runs in figures.items():
        seconds = sorted(second for second, _ in runs)
        memory = statistics.median(peak for _, peak in runs)
        ratios = f"{medians[name] / medians['cp']:.2f} | {medians[name] / peft:.2f}"
        print(f"| {name} | {medians[name]:.2f} ({seconds[0]:.2f} to {seconds[-1]:.2f}) | {memory:.0f} | {ratios} |")


if __name__ == "__main__":
    main()
