"""A process that is about to run a stranger's code: what it may still write, read and reach (Linux, Landlock).

Landlock is the kernel's own (5.13 and later), needs no right, and holds for every child: https://docs.kernel.org/userspace-api/landlock.html.
A process so confined can neither write what is judged, nor read a token out of a file or out of another process's
environment; from Linux 6.7 on, nor connect by TCP, and from 6.12 on, nor send signals to what started it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
PR_SET_NO_NEW_PRIVS, PATH_BENEATH = 38, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
READING = EXECUTE | READ_FILE | READ_DIR
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # all that a rule on a file, not a folder, may say
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # of files, since which version
TCP, SCOPES = 0b11, 0b11  # bind and connect (version 4); abstract sockets and signals (version 6)
# The interface's version 3; root keeps its way past the rights of files, no more.
CAPABILITIES, KEPT = 0x20080522, 0b110
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/etc", "/opt", "/nix", "/proc", "/sys", "/dev")


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("process", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32 * 1),
        ("permitted", ctypes.c_uint32 * 1),
        ("inheritable", ctypes.c_uint32 * 1),
    )


def confine(*, writable: Iterable[Path], readable: Iterable[Path]) -> bool:
    """Give up everything but these, for good; True where the system could do it.

    The system's own folders and Python's stay readable. Nothing is given up where the kernel has no Landlock.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    handled = RIGHTS[max(number for number in RIGHTS if number <= version)]
    rules = _Ruleset(handled, TCP if version >= 4 else 0, SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(CREATE_RULESET, ctypes.byref(rules), size, 0)
    if ruleset < 0:
        return False
    try:
        for path in {*map(Path, SYSTEM), *_pythons(), *readable}:
            _allow(libc, ruleset, path, READING & handled)
        for path in (*writable, Path(os.devnull)):
            _allow(libc, ruleset, path, handled)
        none = (0, 0, 0)
        _drop_capabilities(libc)
        sworn = libc.prctl(PR_SET_NO_NEW_PRIVS, 1, *none) == 0
        return sworn and bool(libc.syscall(RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """With CAP_PERFMON, root reads another process's memory past Landlock (Linux 6.15 and later)."""
    header, held = _CapabilityHeader(CAPABILITIES, 0), (_Capabilities * 2)()
    if libc.capget(ctypes.byref(header), held) == 0:
        for half, kept in zip(held, (KEPT, 0), strict=True):
            for field in (half.effective, half.permitted, half.inheritable):
                field[0] &= kept
        libc.capset(ctypes.byref(header), held)


def _pythons() -> Iterable[Path]:
    folders = {Path(folder) for folder in (sys.prefix, sys.base_prefix, *sys.path) if folder}
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)  # on clusters with modules, anywhere
    return folders | {Path(folder) for folder in libraries if folder.startswith("/")}


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    """What does not exist needs no rule; what cannot be opened stays shut."""
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        allowed = rights if path.is_dir() else rights & OF_FILES
        libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(_Beneath(allowed, opened)), 0)
    finally:
        os.close(opened)
