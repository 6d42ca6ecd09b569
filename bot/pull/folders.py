"""A source in a local folder: named by the hash of its content, so that a change in it is another source."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock

from bot.errors import NotFound, Refused
from bot.events import Emit, StepProgress
from bot.input_files import is_stated, look, not_its_hash
from bot.pull import texts
from bot.pull.hashes import Hashes
from bot.pull.relevant_files import is_a_trainers, is_read
from bot.records import FileEntry, Ref, Role, Source
from bot.untrusted.links import cached_blob, input_files

LFS_POINTER = b"version https://git-lfs"
# consolidated: Mistral's own, beside the same
WEIGHTS = re.compile(r"(?!consolidated)[^/]+\.safetensors|adapter_model\.bin")
LEFT_OUT = {"README.md"}  # hidden files (.gitattributes, .git) are left out too: none of them changes a merge


def pin_folder(role: Role, ref: Ref) -> Source:
    """List the files of the folder and read its small ones. It has no `sha` before `with_hashes`.

    Raises NotFound, and Refused for links that lead out of it and for files that cannot be what their names say.
    """
    folder = ref.folder
    assert folder is not None
    if not folder.exists():
        raise NotFound(f"The folder {ref.text} does not exist.", remedy="Check the path; a Hub repo is owner/name.")
    if not folder.is_dir():
        raise NotFound(f"{ref.text} is a file.", remedy="Name the folder that holds it.")
    paths = input_files(folder, is_a_trainers)
    files = tuple(entry_of(name, path) for name, path in paths.items())
    _refuse_pointers(paths, role, ref)
    contents = {name: paths[name].read_bytes() for name in texts.wanted(files)}
    texts.check(contents, ref.text)
    return Source(
        role=role,
        ref=ref,
        repo=None,
        revision=None,
        sha="",
        files=files,
        headers=(),
        texts=contents,
        card=texts.card_of(contents),
    )


def with_hashes(source: Source, emit: Emit, hashes: Hashes, later: Container[str] = ()) -> Source:
    """The folder with the hash of every file that counts, and its own. Raises Damaged where a Hub cache's file is not what its
    name says. `later`: files that are left for `hashed_since`, until which the folder has no `sha`; but for those that a cache names
    by git's hash, which are small."""
    left = {entry.name for entry in source.files if entry.name in later and entry.oid is None}
    files = _hashed(source, emit, hashes, left)
    return replace(source, files=files, sha="" if left else _sha_of(files))


def hashed_since(source: Source, hashes: Mapping[str, str]) -> Source:
    """The folder with its own hash, given {name: sha256} of the files that were left for later."""
    files = tuple(replace(entry, sha256=hashes.get(entry.name, entry.sha256)) for entry in source.files)
    return replace(source, files=files, sha=_sha_of(files))


def _sha_of(files: Iterable[FileEntry]) -> str:
    return folder_sha((entry.name, entry.sha256 or "") for entry in files if entry.name not in LEFT_OUT)


def sha_of_all(source: Source) -> str:
    """The sha by which earlier versions named a folder: over every file in it, not only over what a merge reads. "" where they
    would have refused it."""
    assert source.ref.folder is not None
    try:
        paths = {name: path for name, path in input_files(source.ref.folder).items() if name not in LEFT_OUT}
    except Refused:  # a link that was refused at that time
        return ""
    digests = Hashes(None)
    return folder_sha((name, digests.sha256(path, lambda amount: None)) for name, path in paths.items())


def entry_of(name: str, path: Path) -> FileEntry:
    """What is known of a file without reading it. A link of a Hub cache leads to a blob that is named by its hash, which is
    believed until the bytes are read."""
    identity, blob = look(path), cached_blob(path) or ""
    sha256, oid = (blob or None, None) if len(blob) == 64 else (None, blob or None)
    return FileEntry(name=name, size=identity.size, sha256=sha256, oid=oid, here=True, identity=identity)


def folder_sha(hashes: Iterable[tuple[str, str]]) -> str:
    """`sha256:…` over the canonical JSON of the sorted (name, sha256) list."""
    text = json.dumps(sorted([name, sha256] for name, sha256 in hashes), separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _refuse_pointers(paths: dict[str, Path], role: Role, ref: Ref) -> None:
    """A checkout without LFS holds 130-byte stand-ins; merged, they would be nonsense. Those of files that no merge reads
    are left alone: many fetch no original/ and no GGUF (`git lfs pull --include "*.safetensors"`)."""
    read = {name: path for name, path in paths.items() if WEIGHTS.fullmatch(name) or is_read(name, role)}
    pointers = [name for name, path in read.items() if path.stat().st_size < 1024 and _starts_as_pointer(path)]
    if pointers:
        shown = ", ".join(pointers[:3]) + (f" and {len(pointers) - 3} more" if len(pointers) > 3 else "")
        raise Refused(
            f"{ref.text} holds git-lfs pointers instead of files: {shown}.",
            remedy="Fetch the files with `git lfs pull` (in a workflow: `lfs: true` of actions/checkout).",
        )


def _starts_as_pointer(path: Path) -> bool:
    with path.open("rb") as opened:
        return opened.read(len(LFS_POINTER)) == LFS_POINTER


def _hashed(source: Source, emit: Emit, hashes: Hashes, left: Set[str]) -> tuple[FileEntry, ...]:
    """Two files at a time: hashing is bound by one core, reading by the disk. `left`: those that stay as they are."""
    asked = [entry for entry in source.files if entry.name not in left]
    total, done, lock = sum(entry.size for entry in asked if not _is_known(entry, source, hashes)), 0, Lock()
    what = f"Hashing the {source.role}"

    def read(amount: int) -> None:
        nonlocal done
        with lock:
            done += amount
            emit(StepProgress(stage="pull", done=done, total=total, what=what))

    emit(StepProgress(stage="pull", done=0, total=total, what=what))
    with ThreadPoolExecutor(max_workers=2) as pool:
        made = {entry.name: entry for entry in pool.map(lambda entry: _with_hash(entry, source, hashes, read), asked)}
    hashes.keep()
    return tuple(made.get(entry.name, entry) for entry in source.files)


def _is_known(entry: FileEntry, source: Source, hashes: Hashes) -> bool:
    """Whether a file need not be read for its hash."""
    assert source.ref.folder is not None
    if source.texts.get(entry.name) is not None:
        return False
    return (entry.sha256 is not None and hashes.remember) or hashes.knows(source.ref.folder / entry.name)


def _with_hash(entry: FileEntry, source: Source, hashes: Hashes, read: Callable[[int], None]) -> FileEntry:
    folder, text = source.ref.folder, source.texts.get(entry.name)
    assert folder is not None
    if entry.sha256 is not None and hashes.remember and text is None:
        return entry
    if text is not None:
        read(entry.size)
        sha256 = hashlib.sha256(text).hexdigest()  # of the bytes that the plan is made from
    else:
        sha256 = hashes.sha256(folder / entry.name, read)
    stated = entry.sha256 in (None, sha256)
    if entry.oid is not None:
        content = text if text is not None else (folder / entry.name).read_bytes()
        stated = is_stated([content], len(content), None, entry.oid)
    if not stated:
        raise not_its_hash(entry.name, source.ref.text)
    return replace(entry, sha256=sha256)
