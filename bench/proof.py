"""What each level of the proof costs, beside what nobody can do without: sha256 of every byte read and written.

    python bench/proof.py [--shape NAME …] [--runs 3] [--folder DIR] [--only WORD …] [--avx2]

Each figure is of a whole process tree, start to exit, warm page cache: processor seconds (user and system, of the process
and of every child that it waited for), wall seconds, and the peak resident set of the largest process of the tree. The
contenders take turns; the run with the fewest processor seconds counts. `toy` is a model of a few tensors: what is left there
is what starting costs. `--avx2` runs every contender as on a processor without AVX-512.

sha256: openssl's, by way of hashlib, of base, adapter and result, in one thread. PEFT: load, merge_and_unload, save. `merge
--verify files`: ours without a proof of the weights; `merge --verify weights`: with it; `verify`: the proof alone, of a folder
that lies there with its report.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import processor
from merge import SET, UNSET
from shapes import SHAPES, make

HERE = Path(__file__).parent
SHA256 = """
import hashlib, pathlib, sys
for folder in sys.argv[1:]:
    for path in sorted(pathlib.Path(folder).glob('*.safetensors')):
        with path.open('rb') as file:
            hashlib.file_digest(file, 'sha256')
"""
# A child's children count where it has waited for them (RUSAGE_CHILDREN), and the largest of all is the peak.
MEASURED = """
import os, subprocess, sys, time, resource
began = time.perf_counter()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss / 1024)
sys.exit(status)
"""
Figure = tuple[float, float, float]  # processor seconds, wall seconds, MiB
SHA, FILES = "sha256 of base, adapter and result", "merge --verify files"


def contenders(base: Path, adapter: Path, made: Path, output: Path, avx2: bool) -> dict[str, list[str]]:
    """Name → command. `made`: a finished merge; what merges makes `output`."""
    start = ["-c", processor.AVX2_MAIN] if avx2 else ["-m", "bot"]
    ours = [sys.executable, *start]
    merge = [*ours, "merge", str(adapter), "--base", str(base), "--output", str(output), "--quiet", "--verify"]
    verify = [*ours, "verify", str(made), "--base", str(base), "--adapter", str(adapter), "--quiet", "--verify"]
    return {
        SHA: [sys.executable, "-c", SHA256, str(base), str(adapter), str(made)],
        "PEFT load-merge-save": [sys.executable, str(HERE / "peft_script.py"), str(base), str(adapter), str(output)],
        FILES: [*merge, "files"],
        "merge --verify weights": [*merge, "weights"],
        "verify --verify weights": [*verify, "weights"],
        "verify --verify full": [*verify, "full"],
    }


def measure(command: list[str], output: Path, avx2: bool) -> Figure:
    """Run one command to its end. Raises RuntimeError when it fails."""
    shutil.rmtree(output, ignore_errors=True)
    environment = {name: value for name, value in os.environ.items() if name not in UNSET} | SET
    environment |= processor.AVX2_ENVIRONMENT if avx2 else {}
    environment["PYTHONPATH"] = str(HERE.parent)
    with tempfile.TemporaryDirectory() as scratch:
        measured = [sys.executable, "-c", MEASURED, *command]
        done = subprocess.run(measured, capture_output=True, text=True, env=environment, cwd=scratch)
    if done.returncode:
        raise RuntimeError(f"{command} failed: {done.stderr[-2000:]}")
    seconds, wall, memory = map(float, done.stdout.split())
    return seconds, wall, memory


def warm(*folders: Path) -> None:
    """Have their files in the page cache."""
    for path in (path for folder in folders for path in folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def compared(name: str, folder: Path, runs: int, words: list[str], avx2: bool) -> dict[str, Figure]:
    """The best figure of every contender on one shape."""
    base, adapter = make(name, folder)
    made, output = folder / f"{name}-made", folder / f"{name}-output"
    shutil.rmtree(made, ignore_errors=True)
    commands = contenders(base, adapter, made, output, avx2)
    measure(commands[FILES], output, avx2)
    output.rename(made)
    commands = {contender: command for contender, command in commands.items()
                if contender == SHA or any(word in contender for word in words)}  # fmt: skip
    best: dict[str, Figure] = {}
    try:
        for _ in range(runs):
            for contender, command in commands.items():
                warm(base, adapter, made)
                figure = measure(command, output, avx2)
                best[contender] = min(best.get(contender, figure), figure)
    finally:
        for left in (made, output):
            shutil.rmtree(left, ignore_errors=True)
    return best


def main() -> None:
    """Measure and print a Markdown table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=["qwen2.5-0.5b", "toy"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "adapter-merge-bench")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="sha256, and what has WORD in its name")
    parser.add_argument("--avx2", action="store_true", help="as on a processor without AVX-512")
    asked = parser.parse_args()
    names = ("torch", "transformers", "peft", "safetensors", "numpy")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    cpu = processor.name() + (" held to AVX2" if asked.avx2 else "")
    print(
        f"{os.cpu_count()} cores of {cpu}, Python {platform.python_version()}; {versions}; {time.strftime('%Y-%m-%d')};"
    )
    print(f"the best of {asked.runs} runs")
    for name in asked.shape:
        figures = compared(name, asked.folder.resolve(), asked.runs, asked.only, asked.avx2)
        print(f"\n{name}:\n\n| | CPU | × sha256 | seconds | peak MiB |\n" + "| --- " * 5 + "|")
        for contender, (seconds, wall, memory) in figures.items():
            ratio = seconds / figures[SHA][0]
            print(f"| {contender} | {seconds:.2f} | {ratio:.1f} | {wall:.2f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
