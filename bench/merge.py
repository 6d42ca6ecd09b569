"""How long a merge takes and how much memory, side by side with `cp`, the PEFT script and other tools, in one run.

    python bench/merge.py [--shape NAME] [--runs 5] [--folder DIR] [--peers DIR] [--only WORD …] [--differences] [--avx2]

Every figure is a whole process, start to exit, warm page cache, memory that was in use a moment ago. The contenders take
turns, so that a slow moment of the machine meets all of them; medians are printed, and the ratio to `cp` and to PEFT.
Memory is the peak resident set of the largest process, "CPU" its processor seconds (wait4). `--avx2` runs every
contender as on a processor without AVX-512. `python bench/peers.py` installs the other tools. A first
turn, not counted, warms the cache and shows that each result differs from the base: a merge that changed nothing is no
contender.
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

import peers
import processor
from shapes import SHAPES, make

HERE = Path(__file__).parent
# Some virtual machines hand free memory back to their host, and pay for it when it is used again: several seconds for a
# few gigabytes, whoever comes first. So that much is in use right before each run.
TOUCH = "import numpy; numpy.empty({}, 'u1')[::4096] = 1"
Figure = tuple[float, float, float]  # seconds, processor seconds, MiB
CP, PEFT, OURS = "cp", "PEFT load-merge-save", "adapter-merge --verify files"
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # a machine's workaround; it picks slow kernels
SET = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "AXOLOTL_DO_NOT_TRACK": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}


def contenders(base: Path, adapter: Path, output: Path, environments: Path, avx2: bool) -> dict[str, list[str]]:
    """Name → command. Each makes `output`."""
    start = ["-c", processor.AVX2_MAIN] if avx2 else ["-m", "bot"]
    ours = [sys.executable, *start, "merge", str(adapter), "--base", str(base), "--output", str(output), "--quiet"]
    folders = [str(base), str(adapter), str(output)]
    commands = {
        CP: ["cp", "-r", str(base), str(output)],
        PEFT: [sys.executable, str(HERE / "peft_script.py"), *folders],
        OURS: [*ours, "--verify", "files"],
        "adapter-merge --verify weights": [*ours, "--verify", "weights"],
    }
    for name, peer in peers.PEERS.items():
        if peers.ready(environments, name):
            script = HERE / f"peer_{name.replace('-', '_')}.py"
            commands[peer.version] = [str(peers.python(environments, name)), str(script), *folders]
    return commands


def measure(command: list[str], base: Path, output: Path, avx2: bool = False) -> Figure:
    """Run one command to its end. Raises RuntimeError when it fails or leaves no weights."""
    shutil.rmtree(output, ignore_errors=True)
    size = sum(path.stat().st_size for path in base.iterdir())
    subprocess.run([sys.executable, "-c", TOUCH.format(size * 5 // 4 + (1 << 30))], check=True)
    for path in base.iterdir():  # the contender before may have driven the base out of the page cache
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
    environment = {name: value for name, value in os.environ.items() if name not in UNSET} | SET
    environment |= processor.AVX2_ENVIRONMENT if avx2 else {}
    if command[0] == sys.executable:
        environment["PYTHONPATH"] = str(HERE.parent)
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=scratch)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status or not any(output.rglob("*.safetensors")):
            log.seek(0)
            raise RuntimeError(f"{command} failed: {log.read()[-2000:].decode()}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def differences(one: Path, other: Path) -> str:
    """As in "5 of 70", in elements. In a process of its own: a child's peak memory is never below what its parent holds."""
    command = [sys.executable, str(HERE / "differences.py"), str(one), str(other)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().replace(" ", " of ")


def first_turn(commands: dict[str, list[str]], base: Path, output: Path, exact: Path | None) -> None:
    """The turn that is not counted. Raises RuntimeError when a result is the base. With `exact`, our own result is kept
    there, and how many elements of each other result differ from it is printed."""
    for name in sorted(commands, key=lambda name: name != OURS):
        measure(commands[name], base, output)
        if name != CP and differences(base, output).startswith("0 "):
            raise RuntimeError(f"{name}: the result is the base")
        if exact and name == OURS:
            shutil.rmtree(exact, ignore_errors=True)
            output.rename(exact)
        elif exact and name != CP:
            print(f"{name}: {differences(exact, output)} elements differ from {OURS}", flush=True)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "adapter-merge-bench")
    parser.add_argument("--peers", type=Path, default=peers.FOLDER, help="where bench/peers.py installed them")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="WORD", help="cp, PEFT, and what has WORD in its name"
    )
    parser.add_argument("--differences", action="store_true", help=f"print how far each result is from {OURS}'s")
    parser.add_argument("--avx2", action="store_true", help="as on a processor without AVX-512")
    asked = parser.parse_args()
    base, adapter = make(asked.shape, asked.folder.resolve())
    output = base.with_name("output")
    commands = contenders(base, adapter, output, asked.peers.resolve(), asked.avx2)
    words = {CP, PEFT, *asked.only}
    commands = {name: command for name, command in commands.items() if any(word in name for word in words)}
    exact = base.with_name("exact") if asked.differences else None
    figures: dict[str, list[Figure]] = {name: [] for name in commands}
    try:
        first_turn(commands, base, output, exact)
        for _ in range(asked.runs):
            for name, command in commands.items():
                figures[name].append(measure(command, base, output, asked.avx2))
    finally:
        for folder in (output, base.with_name("exact")):
            shutil.rmtree(folder, ignore_errors=True)
    report(asked.shape, base, figures, asked.avx2)


def report(shape: str, base: Path, figures: dict[str, list[Figure]], avx2: bool) -> None:
    """Print medians, spreads and ratios."""
    size = sum(path.stat().st_size for path in base.glob("*.safetensors")) / 1e9
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft", "safetensors", "numpy")
    )
    cpu = processor.name() + (" held to AVX2" if avx2 else "")
    print(f"{shape}, {size:.2f} GB; {os.cpu_count()} cores of {cpu}, Python {platform.python_version()};")
    print(f"{versions}; {time.strftime('%Y-%m-%d')}; {len(figures[CP])} runs each\n")
    print("| | seconds, median (min to max) | CPU | peak MiB | × cp | × PEFT |\n" + "| --- " * 6 + "|")
    medians = {name: statistics.median(seconds for seconds, *_ in runs) for name, runs in figures.items()}
    for name, runs in figures.items():
        seconds = sorted(second for second, *_ in runs)
        cpu, memory = (statistics.median(run[at] for run in runs) for at in (1, 2))
        ratios = f"{medians[name] / medians[CP]:.2f} | {medians[name] / medians[PEFT]:.2f}"
        print(
            f"| {name} | {medians[name]:.2f} ({seconds[0]:.2f} to {seconds[-1]:.2f}) | {cpu:.1f} | {memory:.0f} | {ratios} |"
        )


if __name__ == "__main__":
    main()
