"""Xet storage without a Xet server: released hf_xet wheels can use a folder (`local://…`) as their store.

A client process that has opened such a folder locks it for as long as it lives (its index is a redb file). So
every token gets a *view*: a folder of its own with hard links to all that is stored, and a copy of the index. What a
client uploads lands in its view; at the commit it is brought into the object store (its sha256 checked), then
added to the hub's own store, which later views are copied from. The object store stays complete, with or without Xet.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .database import Database
from .objects import Mismatch, Objects

TOKEN_SECONDS = 24 * 3600
INDEX = "global_dedup_lookup.redb"
HEADER, RECORD = 48, 48
WITH_VERIFICATION, WITH_METADATA = 0x80000000, 0x40000000


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """A file that a shard describes."""

    xet_hash: str
    sha256: str
    size: int


def shard_files(shard: bytes) -> Iterator[ShardFile]:
    """The files of an MDB shard that carry a sha256 (format: xet-core `mdb_shard`, file section)."""
    at = HEADER
    while at + RECORD <= len(shard) and shard[at : at + 32] != b"\xff" * 32:
        xet_hash = _hex(shard[at : at + 32])
        flags, count = (int.from_bytes(shard[at + i : at + i + 4], "little") for i in (32, 36))
        at += RECORD
        # A segment: xorb hash [32], flags, unpacked bytes, first and last chunk (u32 each).
        size = sum(int.from_bytes(shard[at + n * RECORD + 36 : at + n * RECORD + 40], "little") for n in range(count))
        at += count * RECORD * (2 if flags & WITH_VERIFICATION else 1)
        if flags & WITH_METADATA:
            yield ShardFile(xet_hash=xet_hash, sha256=_hex(shard[at : at + 32]), size=size)
            at += RECORD


def _hex(digest: bytes) -> str:
    """Xet writes hashes as four little-endian 64-bit words."""
    return "".join(f"{int.from_bytes(digest[i : i + 8], 'little'):016x}" for i in range(0, 32, 8))


class Xet:
    """The folder of views and the hub's own store."""

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("hf_xet") is None:
            raise RuntimeError("Serving Xet needs hf_xet: install it, or serve without Xet.")
        self._own = folder / "xet" / "own"
        self._views = folder / "xet" / "views"
        self._lock = threading.RLock()
        self._session: Any = None
        # No client of an earlier run can still hold a token of this one.
        shutil.rmtree(self._views, ignore_errors=True)
        for part in ("xorbs", "shards"):
            (_store(self._own) / part).mkdir(parents=True, exist_ok=True)
        self._views.mkdir(parents=True, exist_ok=True)

    def open_view(self) -> str:
        """A new view of all that is stored, as a `casUrl`."""
        self._drop_old_views()
        with self._lock:
            return _url(self._copy(self._own))

    def _copy(self, source: Path) -> Path:
        target = self._views / uuid.uuid4().hex
        for part in ("xorbs", "shards"):
            (_store(target) / part).mkdir(parents=True)
            for file in os.scandir(_store(source) / part):
                os.link(file.path, _store(target) / part / file.name)
        index = _store(source) / INDEX
        if index.exists():
            shutil.copyfile(index, _store(target) / INDEX)
        return target

    def _drop_old_views(self) -> None:
        for view in self._views.iterdir():
            if view.stat().st_mtime < time.time() - TOKEN_SECONDS:
                shutil.rmtree(view, ignore_errors=True)

    def fetch_upload(self, sha256: str, objects: Objects) -> bool:
        """Copy a file that a client uploaded into the object store; False where no view has it."""
        for view in list(self._views.iterdir()):
            file = self._find(view, sha256)
            if file is not None:
                return self._copy_from(view, file, objects)
        return False

    def _find(self, view: Path, sha256: str) -> ShardFile | None:
        own = {file.name for file in os.scandir(_store(self._own) / "shards")}
        for shard in os.scandir(_store(view) / "shards"):
            if shard.name.endswith(".mdb") and shard.name not in own:
                for file in shard_files(Path(shard.path).read_bytes()):
                    if file.sha256 == sha256:
                        return file
        return None

    def _copy_from(self, view: Path, file: ShardFile, objects: Objects) -> bool:
        # The client may still hold the lock on its view's index, so the bytes are read through a copy of the view.
        copy = self._copy(view)
        temporary = objects.temporary()
        try:
            self._download(copy, file, temporary)
            objects.adopt(temporary, file.sha256, file.size)
        except Mismatch:
            return False
        finally:
            temporary.unlink(missing_ok=True)
            shutil.rmtree(copy, ignore_errors=True)
        return True

    def _download(self, view: Path, file: ShardFile, target: Path) -> None:
        from hf_xet import XetFileInfo  # type: ignore[import-not-found, import-untyped, unused-ignore]

        with self._xet().new_file_download_group(**_connection(view)) as group:
            group.start_download_file(XetFileInfo(file.xet_hash, file.size), str(target))

    def ingest(self, sha256: str, objects: Objects, db: Database) -> None:
        """Add an object to the hub's own store, so that Xet clients can read it, however it was uploaded."""
        if self.hash_of(sha256, db) is not None:
            return
        with self._lock:
            with self._xet().new_upload_commit(**_connection(self._own)) as commit:
                upload = commit.start_upload_file(str(objects.path(sha256)), sha256=sha256)
            xet_hash = str(upload.result().xet_info.hash)
        with db.write() as rows:
            rows.execute("INSERT OR REPLACE INTO xet VALUES (?, ?)", (sha256, xet_hash))

    def hash_of(self, sha256: str, db: Database) -> str | None:
        """The Xet hash of an object."""
        row = db.read.execute("SELECT hash FROM xet WHERE sha256 = ?", (sha256,)).fetchone()
        return None if row is None else str(row["hash"])

    def close(self) -> None:
        """Let go of the store's lock."""
        self._session = None

    def _xet(self) -> Any:
        if self._session is None:
            # Imported late: only a hub that serves Xet needs it.
            from hf_xet import XetSession

            self._session = XetSession()
        return self._session


def _store(root: Path) -> Path:
    return root / "xet" / "xorbs"


def _url(root: Path) -> str:
    return f"local://{root.resolve()}"


def _connection(root: Path) -> dict[str, Any]:
    expiry = int(time.time()) + TOKEN_SECONDS
    return {"endpoint": _url(root), "token": "local", "token_expiry_unix_secs": expiry}
