"""What a folder holds, and where its links lead: none may lead out of it.

A folder may come from a stranger (a cloned repository): a link in it to a secret of this machine would be read, merged or
copied as if it were the stranger's own file. The one way out is the Hub cache's: its folders are nothing but links to blobs,
and what came by Xet lies once for the whole cache, with a link in the place of each repo's blob:
`models--x--y/snapshots/<commit>/name` → `models--x--y/blobs/<etag>` → `blobs/<two digits>/<xet hash>`
(huggingface_hub.utils._shared_blobs). The etag is the sha256, or git's blob id; the Xet hash is neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from bot.errors import Refused

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
OID = re.compile(r"[0-9a-f]{40}")
BOOKKEEPING = frozenset({".git", ".cache"})  # a clone's and a download's own folders, which nobody here reads


def input_files(folder: Path, passed_over: Callable[[str], bool] = lambda name: False) -> dict[str, Path]:
    """The files of an input by name, those of folders in it with a slash; hidden ones are left out, since none changes a
    merge. `passed_over`: whether nobody reads what has this name, so that a link of it need not be followed. Raises Refused for
    another link that leads out of the folder, or nowhere."""
    paths = _walk(folder, folder, hidden=False, passed_over=passed_over)
    return {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}


def result_files(folder: Path) -> dict[str, Path]:
    """The files of a merged folder by name, hidden ones too. Raises Refused for a link that leads out of it; one that leads
    nowhere is left to the proof, which names it."""
    return {path.relative_to(folder).as_posix(): path for path in _walk(folder, folder, hidden=True) if path.is_file()}


def cached_blob(path: Path) -> str | None:
    """The name of the blob that a link in a Hub cache's folder leads to: a sha256, or git's blob id. None for all else."""
    if not path.is_symlink():
        return None
    blobs, blob = _blobs(path.parent.resolve()), link_target(path)
    if blobs is None or blob.parent.resolve() != blobs or not (SHA256.fullmatch(blob.name) or OID.fullmatch(blob.name)):
        return None
    real = blob.resolve()
    return blob.name if real.is_file() and (real == blobs / blob.name or _is_shared(real, blobs)) else None


def link_target(link: Path) -> Path:
    """Where a link leads, one step of the way."""
    return link.parent / link.readlink()


def _is_shared(real: Path, blobs: Path) -> bool:
    """Whether a file lies in the store that all repos of a cache share; `blobs`: those of one of its repos."""
    return SHA256.fullmatch(real.name) is not None and real.parent == blobs.parent.parent / "blobs" / real.name[:2]


def _walk(
    folder: Path, root: Path, *, hidden: bool, passed_over: Callable[[str], bool] = lambda name: False
) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in BOOKKEEPING if hidden else path.name.startswith("."):
            continue
        if path.is_symlink():
            if passed_over(path.name):
                continue
            if hidden and not _leads_somewhere(path):
                continue
            _require_inside(path, root)
            if not path.is_dir():  # a folder that a link leads to is in this one, or nobody's
                yield path
        elif path.is_dir():
            yield from _walk(path, root, hidden=hidden, passed_over=passed_over)
        else:
            yield path


def _require_inside(link: Path, root: Path) -> None:
    name, home = link.relative_to(root).as_posix(), root.resolve()
    if not _leads_somewhere(link):
        raise Refused(
            f"{name} in {home.name} is a link that leads nowhere.", remedy="Remove it, or fetch the folder again."
        )
    real = link.resolve()
    inside = real.is_relative_to(home) and not any(part.startswith(".") for part in real.relative_to(home).parts)
    if not inside and cached_blob(link) is None:
        raise Refused(
            f"{name} in {home.name} is a link that leads out of the folder.",
            remedy="Do not trust a folder that came so; if it is yours, put the file itself in the link's place.",
        )


def _leads_somewhere(link: Path) -> bool:
    try:
        link.stat()
    except OSError:  # nothing there, a circle, or a place that is closed to us
        return False
    return True


def _blobs(folder: Path) -> Path | None:
    """The blobs of the Hub cache that a folder is part of: `…/blobs` beside `…/snapshots/<commit>`."""
    for snapshot in (folder, *folder.parents):
        if snapshot.parent.name == "snapshots" and COMMIT.fullmatch(snapshot.name):
            return snapshot.parent.parent / "blobs"
    return None
