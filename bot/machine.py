"""The only module that asks the machine: memory, disk, processors, GPU, versions. Imports nothing heavy."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from bot.gpus import list_gpus
from bot.records import Machine

PACKAGES = ("torch", "transformers", "peft", "safetensors", "huggingface_hub")


def look(folder: Path) -> Machine:
    """What this machine has; the free disk is that of the filesystem where `folder` is or will be."""
    total, available = _memory()
    return Machine(
        memory=total,
        memory_available=available,
        disk_free=shutil.disk_usage(_existing(folder)).free,
        platform=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        versions={name: _version(name) for name in PACKAGES},
        gpus=list_gpus(),
        cuda=torch_has_cuda(),
    )


def free_beside(cache: Path, output: Path) -> int | None:
    """Free bytes where downloads go; None where that is the disk that the output goes to."""
    folders = [_existing(folder) for folder in (cache, output)]
    if folders[0].stat().st_dev == folders[1].stat().st_dev:
        return None
    disk, other = map(os.statvfs, folders)
    # Subvolumes of one disk have devices of their own.
    is_same = (disk.f_blocks, disk.f_bfree) == (other.f_blocks, other.f_bfree)
    return None if is_same else disk.f_bavail * disk.f_frsize


# What a process of strangers' code or files needs of the environment: to find programs and libraries, and to be tuned.
NEEDED = frozenset(
    {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV"}
)
TUNING = ("LC_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "ATEN_", "MALLOC_", "PYTHONHASHSEED", "PYTORCH_", "TORCH_",
          "BNB_", "BITSANDBYTES_")  # fmt: skip


def bare_environment() -> dict[str, str]:
    """The environment for a process that must not know a secret: only variables on a list, instead of all but the known secrets."""
    return {name: value for name, value in os.environ.items() if name in NEEDED or name.startswith(TUNING)}


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _memory() -> tuple[int, int]:
    """(total, available) bytes, never more than the container's limit (cgroup v2, then v1) allows."""
    if not Path("/proc/meminfo").exists():  # macOS: no word on what is available, so all of it
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total
    fields = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) * 1024
    total, available = fields["MemTotal"], fields["MemAvailable"]
    for folder, limit_name, used_name in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit, used = _number(f"{folder}/{limit_name}"), _number(f"{folder}/{used_name}")
        if limit is not None and limit < total:
            held = (used or 0) - _file_cache(f"{folder}/memory.stat")
            total, available = limit, min(available, max(0, limit - held))
    return total, available


def _file_cache(stat_file: str) -> int:
    """Bytes of file cache that the kernel counts as used and gives back when asked; downloads fill it."""
    try:
        lines = Path(stat_file).read_text().splitlines()
    except OSError:
        return 0
    fields = {name: int(value) for name, value in (line.split() for line in lines)}
    return max(
        fields.get("total_inactive_file", 0) + fields.get("total_active_file", 0),
        fields.get("inactive_file", 0) + fields.get("active_file", 0),
    )


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no such controller, or "max"
        return None


def torch_has_cuda() -> bool:
    """As torch's own file of versions says, since torch itself takes seconds to import. True where nobody can tell."""
    spec = importlib.util.find_spec("torch")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        with suppress(OSError):
            version = re.search(r"^cuda\b.*=\s*(\S+)$", (Path(folder) / "version.py").read_text(), re.MULTILINE)
            return version is None or version[1] != "None"
    return True


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
