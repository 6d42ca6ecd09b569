"""Other tools that merge an adapter, each in a virtual environment of its own.

    python bench/peers.py [--folder DIR] [NAME …]

Installs what can be installed, and prints what cannot, with the last line of the error. What is there already is kept.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(tempfile.gettempdir()) / "bench-peers"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """How a tool is installed, and the import that shows that it is."""

    packages: str  # installed without their dependencies: some pins conflict, or ask for CUDA builds
    needs: str  # what the merge imports
    probe: str

    @property
    def version(self) -> str:
        """Name and version of the first package."""
        return self.packages.split()[0].replace("==", " ")


PEERS = {
    "mergekit": Peer(
        packages="mergekit==0.1.5",
        needs="transformers==5.23.0 peft==0.21.2 accelerate safetensors tokenizers huggingface_hub sentencepiece protobuf "
        "scipy datasets pydantic>=2.10.6,<3 click>=8.2.1,<9 tqdm>=4.67.1 immutables>=0.21,<1",
        probe="import mergekit.scripts.run_yaml",
    ),
    # Its pins of what the merge uses; xformers, kernels for GPUs, loggers and clouds are left out.
    "axolotl": Peer(
        packages="axolotl==0.19.0",
        needs="packaging==26.0 huggingface_hub==1.17.0 peft==0.20.0 tokenizers==0.23.1 transformers==5.16.1 accelerate==1.13.0 "
        "datasets==4.8.4 trl==1.9.0 pydantic==2.12.5 PyYAML==6.0.3 typing-extensions==4.15.0 python-dotenv==1.0.1 posthog==6.7.11 "
        "bitsandbytes==0.50.2 addict fire requests einops colorama psutil numpy<3 art pillow numba>=0.63.1,<1 fastcore",
        probe="import axolotl.cli.main, axolotl.cli.merge_lora",
    ),
    # Its training half (renderers, services) is left out: one of its requirements is not on PyPI for every Python.
    "tinker-cookbook": Peer(
        packages="tinker-cookbook==0.6.1",
        needs="transformers==5.23.0 tinker>=0.38 safetensors huggingface-hub numpy pydantic>=2 pyrage",
        probe="import tinker_cookbook.weights",
    ),
    # Without torchvision, torchao and xformers: PyPI has them built for CUDA only.
    "unsloth": Peer(
        packages="unsloth==2026.10.9 unsloth_zoo==2026.10.9",
        needs="transformers==5.17.0 peft==0.21.2 trl<=1.15.0 datasets>=4.6,<5 accelerate huggingface_hub hf_transfer triton "
        "sentencepiece protobuf pillow regex msgspec tyro einops psutil packaging tqdm requests certifi filelock numpy",
        probe="import unsloth, unsloth_zoo.saving_utils",
    ),
}


def python(folder: Path, name: str) -> Path:
    """The interpreter of a peer's environment."""
    return folder / name / "bin" / "python"


def ready(folder: Path, name: str) -> bool:
    """Whether its installation came to its end."""
    return (folder / name / "ready").exists()


def install(folder: Path, name: str) -> str:
    """Make one environment, unless it is there. Returns how that went, in a line."""
    peer, interpreter = PEERS[name], str(python(folder, name))
    if ready(folder, name):
        return f"{peer.version}: there"
    venv.create(folder / name, with_pip=True, clear=True)
    pip = [interpreter, "-m", "pip", "install", "--quiet"]
    for step in (
        [*pip, "torch==2.13.0", *peer.needs.split()],
        [*pip, "--no-deps", *peer.packages.split()],
        [interpreter, "-c", peer.probe],
    ):
        done = subprocess.run(step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)
        if done.returncode:
            shutil.rmtree(folder / name)
            return f"{peer.version}: not installed: {done.stdout.strip().splitlines()[-1]}"
    (folder / name / "ready").touch()
    return f"{peer.version}: installed"


def main() -> None:
    """Install the peers named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PEERS))
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in asked.names or PEERS:
        print(install(folder, name), flush=True)


if __name__ == "__main__":
    main()
