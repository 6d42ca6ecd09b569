"""A repo's own code, named by `auto_map`: it must be the base's, and must not have changed any judged file while it ran.

Only the base's code is ever run, and only with --trust-remote-code: what the merged folder has must be the base's files,
byte for byte. `owner/name--module.Class` names another repo's code, which nobody here has looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bot.checks.case import Case
from bot.checks.finding import counted, graded
from bot.checks.reading.folders import list_files, read_json
from bot.records import Finding

SMALL = 64 << 20  # bytes; larger files are told by size and times, of which no program can set ctime back


def own_code(case: Case) -> Finding:
    """Whatever the folder's configs name as code is in the folder, and is the base's."""
    fails: list[str] = []
    warns: list[str] = []
    named = list(code_named(case.subject.folder))
    for config, reference in named:
        if "--" not in reference:
            if sentence := _missing(case.subject.folder, config, reference):
                fails.append(sentence)
        else:
            sentence = f"{config} names code of another repo ({reference[:100]})."
            (warns if case.subject.trust_remote_code else fails).append(sentence)
    right = (counted(len(named), "class") if named else "none", "Every class that a config names is in the folder.")
    return graded("own-code", "in the folder", right, fails=fails, warns=warns)


def _missing(folder: Path, config: str, reference: str) -> str | None:
    module, dot, name = reference.partition(".")
    if not dot or not module.isidentifier() or not name.isidentifier():
        return f"{config} names {reference[:100]!r}, which is no class of a file."
    return None if (folder / f"{module}.py").is_file() else f"{config} names {module}.py, which is not in the folder."


def code_named(folder: Path) -> Iterator[tuple[str, str]]:
    """(config, module.Class) of every class that a config of the folder wants to be run; a value that is not a string as its repr."""
    for path in sorted(folder.glob("*.json")):
        auto_map = (read_json(path) or {}).get("auto_map") if path.stat().st_size <= SMALL else None
        if not auto_map:
            continue
        for value in auto_map.values() if isinstance(auto_map, dict) else [auto_map]:
            for reference in value if isinstance(value, list) else [value]:
                if reference is not None:
                    yield path.name, reference if isinstance(reference, str) else repr(reference)[:100]


def foreign_code(folder: Path, base: Path) -> str | None:
    """Why a folder's code is not the base's own; None where it is."""
    for name in list_files(folder):
        if not name.endswith(".py"):
            continue
        theirs = base / name
        if not theirs.is_file() or theirs.read_bytes() != (folder / name).read_bytes():
            return f"{name} is not the base's"
    elsewhere = next((reference for _, reference in code_named(folder) if "--" in reference), None)
    return f"it names another repo's code ({elsewhere[:100]})" if elsewhere else None


State = dict[str, Any]


def state_of(*folders: Path) -> State:
    """{path: what its file holds}, for everything that a process could have changed."""
    return {str(folder / name): _content_of(folder / name) for folder in folders for name in list_files(folder)}


def changed_since(before: State, *folders: Path) -> str | None:
    """The name of the first file that is new, gone or different; None where there is none."""
    after = state_of(*folders)
    return next((Path(p).name for p in sorted(before.keys() | after.keys()) if before.get(p) != after.get(p)), None)


def _content_of(path: Path) -> object:
    try:
        status = path.stat()
        if status.st_size <= SMALL:
            return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return error.errno
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
