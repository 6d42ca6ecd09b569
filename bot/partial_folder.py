"""The folder in which a merge is built, until it gets its name.

`DIR` is built as `.DIR.partial-<fingerprint>` beside it, and renamed last. So a killed merge goes on from its finished
shards, and a folder called `DIR` is complete.

After a power cut, or a crash of the machine, a file may have its name and not its bytes: nothing here waits for the disk,
which takes longer than most merges. So a finished shard is taken only where its sha256 is the one that was noted of it
(`.DIR.finished-<fingerprint>`, beside it), and a finished folder's report tells what should be in it.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bot.errors import AdapterMergeError, Usage
from bot.report_document import NAME, Document


@contextmanager
def locked_partial_dir(output: Path, fingerprint: str) -> Iterator[Path]:
    """The folder beside `output` in which to build, locked for as long as the block runs: also once it is called `output`.

    Raises Usage when another run builds in that place, or still publishes what it has built there.
    """
    partial = output.parent / f".{output.name}.partial-{fingerprint[:12]}"
    with ExitStack() as locks:
        if output.is_dir():
            locks.enter_context(_only_one(output))
        for other in _partials(output):
            if other != partial:
                with _only_one(other):  # what an abandoned merge of other inputs left behind
                    shutil.rmtree(other, ignore_errors=True)
                    _forget(other)
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(_only_one(partial, make=True))
        except OSError as error:
            raise Usage(f"{output} cannot be made: {error.strerror}.", remedy="Name another --output.") from error
        try:
            yield partial
        except AdapterMergeError:
            # No second try would fare better: leave nothing. (After Ctrl-C or a kill, the finished shards stay.)
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            if not partial.exists():
                _forget(partial)


def note_of(partial: Path) -> Path:
    """Where the sha256 of the finished shards of a partial folder are noted."""
    name, _, fingerprint = partial.name.rpartition(".partial-")
    return partial.with_name(f"{name}.finished-{fingerprint}")


def _forget(partial: Path) -> None:
    for path in (note_of(partial), _fresh(partial)):
        path.unlink(missing_ok=True)


def _fresh(partial: Path) -> Path:
    note = note_of(partial)
    return note.with_name(f"{note.name}.tmp")


def write_note(partial: Path, sha256: Mapping[str, str]) -> None:
    """Keep the sha256 of the shards that are finished. Raises OSError."""
    fresh = _fresh(partial)
    fresh.write_text(json.dumps(sha256))
    fresh.replace(note_of(partial))


def noted(partial: Path) -> dict[str, str]:
    """What was noted of finished shards; of a folder that was finished, and could not be published, its report's files."""
    sha256: dict[str, str] = {}
    with suppress(OSError, ValueError):
        sha256 |= Document.read((partial / NAME).read_bytes()).files or {}
    with suppress(OSError, ValueError, TypeError):
        sha256 |= json.loads(note_of(partial).read_bytes())
    return sha256


def left_behind(output: Path) -> int:
    """Bytes on disk that earlier, unfinished merges to this name hold."""
    return sum(path.stat().st_size for other in _partials(output) for path in other.rglob("*") if path.is_file())


def _partials(output: Path) -> list[Path]:
    return [path for path in output.parent.glob(f".{glob.escape(output.name)}.partial-*") if path.is_dir()]


@contextmanager
def _only_one(folder: Path, *, make: bool = False) -> Iterator[None]:
    """Hold the folder's lock, which stays with it when it is renamed and dies with this process. Raises Usage where it is held.

    `make`: the folder is made where it is not there.
    """
    descriptor = _locked(folder, make)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _locked(folder: Path, make: bool) -> int | None:
    """A descriptor that holds the lock of the folder of this name; None where there is none any more."""
    while True:
        if make:
            folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            if make:
                continue  # whoever had it has just finished
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # renamed between the two looks
        except BlockingIOError as error:
            os.close(descriptor)
            raise Usage(
                "Another merge into this folder is running.", remedy="Wait for it, or choose another --output."
            ) from error
        os.close(descriptor)  # it was finished and renamed meanwhile
