"""What is to be published: a folder whose files all have the sha256 that its own report names, or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bot.errors import NotVerified
from bot.input_files import look
from bot.records import Identity
from bot.report_document import NAME as REPORT
from bot.report_document import Document, is_vouched

if TYPE_CHECKING:
    from bot.hub import Blob, ServerCopy, Upload

CARD = "README.md"
MERGE_AGAIN = "Merge again; nothing was published."


@dataclass(frozen=True, kw_only=True)
class VerifiedUpload:
    """The files by name, the sha256 of each and what it was when it was hashed, and the report that proves them.

    `sent`: those that the Hub holds already, or copies itself; their bytes are not in the folder.
    """

    files: dict[str, Path]
    sha256: dict[str, str]
    identities: dict[str, Identity]
    document: Document
    fingerprint: str
    sent: Mapping[str, Upload | ServerCopy] = field(default_factory=dict)

    @property
    def here(self) -> dict[str, Path]:
        """The files that are still to be sent."""
        return {name: path for name, path in self.files.items() if name not in self.sent}

    @property
    def size(self) -> int:
        """Bytes that are still to be sent, all files together."""
        return sum(path.stat().st_size for path in self.here.values())


@dataclass(frozen=True, kw_only=True)
class SentBefore:
    """Weight files that are on the Hub, or will be copied by it, and not on this disk: how, and the sha256 of each."""

    uploads: Mapping[str, Upload | ServerCopy]
    sha256: Mapping[str, str]


def verified_upload(folder: Path, document: Document, before: SentBefore | None = None) -> VerifiedUpload:
    """Raises NotVerified unless the report says verified and the folder holds exactly the files it names."""
    _require_verdict(document)
    expected = document.files or {}
    files = plain_files(folder)
    before = before or SentBefore(uploads={}, sha256={})
    for name in (CARD, REPORT):
        if name not in files:
            raise NotVerified(f"{folder.name} has no {name}.", remedy=MERGE_AGAIN)
    if _proves(Document.of(json.loads(files[REPORT].read_bytes()))) != _proves(document):
        raise NotVerified(f"{REPORT} in {folder.name} is not the report of this run.", remedy=MERGE_AGAIN)
    here = {name: path for name, path in files.items() if name not in before.uploads}
    identities = {name: look(path) for name, path in here.items()}  # before the hash: a later change shows
    with ThreadPoolExecutor(max_workers=2) as pool:
        sha256 = {**before.sha256, **dict(zip(here, pool.map(_sha256, here.values()), strict=True))}
    wrong = differences(expected, {name: sha256[name] for name in files if is_vouched(name)})
    if wrong:
        raise NotVerified(f"{folder.name} is no longer what was verified: {_few(wrong)}.", remedy=MERGE_AGAIN)
    return VerifiedUpload(
        files=files,
        sha256=sha256,
        identities=identities,
        document=document,
        fingerprint=fingerprint_of(document),
        sent=before.uploads,
    )


def require_proven(upload: VerifiedUpload, sent: Mapping[str, str]) -> None:
    """Raises NotVerified unless what was sent to the Hub, {name: sha256}, is what was proven. Nothing is committed yet.

    A large file is read once for its hash and once more to be sent, so that it must have been the same file all along.
    """
    wrong = differences({name: upload.sha256[name] for name in upload.here}, sent)
    wrong += [f"{name} changed" for name in upload.here if not _is_still(name, upload)]
    if wrong:
        raise NotVerified(
            f"The merged folder changed while it was sent: {_few(wrong)}.",
            remedy="Nothing was committed. Run it again, with nothing else writing there.",
        )


def _is_still(name: str, upload: VerifiedUpload) -> bool:
    path, before = upload.files[name], upload.identities[name]
    try:
        now = look(path)
        if now == before:
            return True
        # Another publication of the same folder makes links to its files, which changes only this time: hash again.
        return replace(now, changed=before.changed) == before and _sha256(path) == upload.sha256[name]
    except OSError:
        return False


def _require_verdict(document: Document) -> None:
    if document.verdict != "verified":
        failed = [str(check.id) for check in document.checks if check.status == "fail"]
        why = f": {_few(failed)} failed" if failed else ""
        raise NotVerified(
            f"The merge is not verified{why}.",
            remedy="Read its report; nothing is published that is not proven.",
        )


def fingerprint_of(document: Document) -> str:
    """The fingerprint of the merge that a report describes. Raises NotVerified where it has none."""
    fingerprint = document.merge.fingerprint
    if not isinstance(fingerprint, str) or not fingerprint:
        raise NotVerified(f"{REPORT} has no fingerprint of the merge.", remedy=MERGE_AGAIN)
    return fingerprint


def plain_files(folder: Path) -> dict[str, Path]:
    """Every file of the folder. Raises NotVerified for a link: what it leads to is not the folder's."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise NotVerified(f"{name} in {folder.name} is a link, not a file.", remedy=MERGE_AGAIN)
        if path.is_file():
            files[name] = path
    return files


def differences(expected: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    """Short words for each name that is missing, extra or of another sha256."""
    return [
        *(f"{name} is missing" for name in sorted(expected.keys() - actual.keys())),
        *(f"{name} is not in the report" for name in sorted(actual.keys() - expected.keys())),
        *(
            f"{name} has other bytes"
            for name in sorted(expected.keys() & actual.keys())
            if expected[name] != actual[name]
        ),
    ]


def differing_files(upload: VerifiedUpload, tree: Mapping[str, Blob], gone: tuple[str, ...] = ()) -> list[str]:
    """How a tree on the Hub differs from the upload: large files by sha256, small ones by git's blob id."""
    wrong = []
    for name, path in upload.files.items():
        blob = tree.get(name)
        if blob is None:
            wrong.append(f"{name} is missing")
        elif blob.sha256 is not None:
            if blob.sha256 != upload.sha256[name]:
                wrong.append(f"{name} has other bytes")
        elif name in upload.sent or blob.oid != git_blob_id(path):
            wrong.append(f"{name} has other bytes")
    return wrong + [f"{name} is still there" for name in gone if name in tree]


def git_blob_id(path: Path) -> str:
    """git's own name for a file's content: sha1 over `blob <size>\\0` and the bytes."""
    digest = hashlib.sha1(b"blob %d\x00" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as opened:
        while piece := opened.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def proves_the_same(text: bytes | None, document: Document) -> bool:
    """Whether this verification.json has the verdict, files, inputs and fingerprint of `document`."""
    try:
        return text is not None and _proves(Document.of(json.loads(text))) == _proves(document)
    except (ValueError, AttributeError, NotVerified):
        return False


def _proves(document: Document) -> tuple[object, ...]:
    return document.proves, fingerprint_of(document)


def _few(words: list[str]) -> str:
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")
