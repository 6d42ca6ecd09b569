"""The GPUs that a CUDA program started from here would see, asked of the driver's own tool, so that torch stays unimported."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping

from bot.records import Gpu

MIB = 1 << 20
FIELDS = "uuid,name,memory.total,memory.free,mig.mode.current"
SLICE = re.compile(r"^\s+(MIG\b.*?)\s+Device\s+\d+:\s*\(UUID: (MIG-[^)]+)\)")
WHOLE = re.compile(r"^GPU \d+: .*\(UUID: (GPU-[^)]+)\)")


def list_gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs, in the order of their PCI addresses, without those that CUDA_VISIBLE_DEVICES hides; of one that is cut in
    slices (MIG), the slices. () where the driver's tool is not there or does not answer."""
    gpus = []
    for line in _ask("--query-gpu=" + FIELDS, "--format=csv,noheader,nounits"):
        uuid, name, total, free, mig = (
            (part.strip() for part in line.rsplit(",", 4)) if line.count(",") >= 4 else [""] * 5
        )
        if uuid and mig == "Enabled":
            # The tool tells the memory of the whole GPU only.
            gpus += [Gpu(name=f"{name}, {kind}", uuid=own) for kind, own in _slices(uuid)]
        elif uuid:
            gpus.append(Gpu(name=name, uuid=uuid, memory=_bytes(total), free=_bytes(free)))
    return tuple(visible(gpus, os.environ))


def visible(gpus: list[Gpu], environment: Mapping[str, str]) -> Iterator[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order; as CUDA reads it, which stops at the first name that it does not know:
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#env-vars. Numbers count by PCI address here."""
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        yield from gpus
        return
    for name in map(str.strip, wanted.split(",")):
        if name.isdecimal() and int(name) < len(gpus):
            yield gpus[int(name)]
            continue
        match = [gpu for gpu in gpus if name.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(name)]
        if len(match) != 1:
            return
        yield match[0]


def _slices(uuid: str) -> Iterator[tuple[str, str]]:
    """(kind, UUID) of each slice of a GPU."""
    current = ""
    for line in _ask("-L"):
        if whole := WHOLE.match(line):
            current = whole[1]
        elif current == uuid and (part := SLICE.match(line)):
            yield part[1], part[2]


def _bytes(mebibytes: str) -> int | None:
    return int(mebibytes) * MIB if mebibytes.isdecimal() else None


def _ask(*arguments: str) -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        asked = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs
        return []
    return asked.stdout.splitlines() if asked.returncode == 0 else []
