"""A source in a local folder: named by the hash of its content, so that a change in it is another source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from bot.errors import NotFound, Refused
from bot.events import Emit, Moved
from bot.hub import blob_sha256
from bot.pull import texts
from bot.pull.hashes import Hashes
from bot.records import FileEntry, Ref, Role, Source

LFS_POINTER = b"version https://git-lfs"
LEFT_OUT = {"README.md"}  # hidden files (.gitattributes, .git) are left out too: none of them changes a merge


def pin_folder(role: Role, ref: Ref, emit: Emit, hashes: Hashes) -> Source:
    """Hash every relevant file of the folder and read its small ones."""
    folder = ref.folder
    assert folder is not None
    if not folder.exists():
        raise NotFound(f"The folder {ref.text} does not exist.", remedy="Check the path; a Hub repo is owner/name.")
    if not folder.is_dir():
        raise NotFound(f"{ref.text} is a file.", remedy="Name the folder that holds it.")
    paths = {path.relative_to(folder).as_posix(): path for path in _visible(folder)}
    _refuse_pointers(paths, ref)
    files = _hashed(paths, emit, hashes)
    found = {name: paths[name].read_bytes() for name in texts.wanted(files)}
    texts.check(found, ref.text)
    return Source(
        role=role,
        ref=ref,
        repo=None,
        revision=None,
        sha=folder_sha((entry.name, entry.sha256 or "") for entry in files if entry.name not in LEFT_OUT),
        files=files,
        headers=(),
        texts=found,
        card=texts.card_of(found),
    )


def folder_sha(hashes: Iterable[tuple[str, str]]) -> str:
    """`sha256:…` over the canonical JSON of the sorted (name, sha256) list."""
    text = json.dumps(sorted([name, sha256] for name, sha256 in hashes), separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _visible(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _visible(path)
        elif path.is_file():
            yield path


def _refuse_pointers(paths: dict[str, Path], ref: Ref) -> None:
    """A checkout without LFS holds 130-byte stand-ins; merged, they would be nonsense."""
    pointers = [name for name, path in paths.items() if path.stat().st_size < 1024 and _starts_as_pointer(path)]
    if pointers:
        shown = ", ".join(pointers[:3]) + (f" and {len(pointers) - 3} more" if len(pointers) > 3 else "")
        raise Refused(
            f"{ref.text} holds git-lfs pointers instead of files: {shown}.",
            remedy="Fetch the files with `git lfs pull` (in a workflow: `lfs: true` of actions/checkout).",
        )


def _starts_as_pointer(path: Path) -> bool:
    with path.open("rb") as opened:
        return opened.read(len(LFS_POINTER)) == LFS_POINTER


def _hashed(paths: dict[str, Path], emit: Emit, hashes: Hashes) -> tuple[FileEntry, ...]:
    """Two files at a time: hashing is bound by one core, reading by the disk."""
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    total, done, lock = sum(sizes.values()), 0, Lock()

    def read(amount: int) -> None:
        nonlocal done
        with lock:
            done += amount
            emit(Moved(stage="pull", done=done, total=total))

    def one(name: str) -> FileEntry:
        known = blob_sha256(paths[name])  # a link into the Hub cache says its sha256 in its name
        if known is not None:
            read(sizes[name])
        changed = paths[name].stat().st_mtime_ns  # before the hash: a later change shows
        found = known or hashes.sha256(paths[name], read)
        return FileEntry(name=name, size=sizes[name], sha256=found, here=True, changed=changed)

    with ThreadPoolExecutor(max_workers=2) as pool:
        found = tuple(pool.map(one, paths))
    hashes.keep()
    return found
