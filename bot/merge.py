"""merge: carry out a plan into a folder that has not got its final name yet.

`DIR` is built as `.DIR.partial-<fingerprint>` beside it. A shard that is whole has its name there; the one in
work ends in `.part`. So a killed merge goes on from its finished shards, and a folder called `DIR` is always complete.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from bot.budget import readable
from bot.errors import AdapterMergeError, MachineTooSmall, Refused, Usage
from bot.events import Emit, Moved, Note, Stage
from bot.records import Local, Measured, Merged, Op, Plan, Shard
from bot.weights.headers import read_header


@contextmanager
def place(output: Path, fingerprint: str) -> Iterator[Path]:
    """The folder beside `output` in which to build, locked for as long as the block runs.

    Raises Usage when another merge into the same place is running.
    """
    partial = output.parent / f".{output.name}.partial-{fingerprint[:12]}"
    for other in _partials(output):
        if other != partial:
            with _only_one(other):  # what an abandoned merge of other inputs left behind
                shutil.rmtree(other, ignore_errors=True)
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Usage(f"{output} cannot be made: {error.strerror}.", remedy="Name another --output.") from error
    with _only_one(partial):
        try:
            yield partial
        except AdapterMergeError:
            # No second try would fare better: leave nothing. (After Ctrl-C or a kill, the finished shards stay.)
            shutil.rmtree(partial, ignore_errors=True)
            raise


def merge(plan: Plan, inputs: Local, partial: Path, emit: Emit) -> Merged:
    """Write every shard, the index and the assets of `plan` into `partial`.

    Raises Refused for inputs whose bytes forbid the merge, and MachineTooSmall when the disk fills up.
    """
    emit(Stage(name="merge", title=f"Merging {plan.method} into {plan.dtype}"))
    started = time.monotonic()
    progress = _Progress(emit, total=sum(shard.size for shard in plan.shards))
    measured: list[Measured] = []
    try:
        ops = _by_shard(plan)
        for shard in plan.shards:
            measured += _shard(shard, ops.get(shard.name, []), inputs, partial, progress, emit)
        _write_rest(plan, inputs, partial)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MachineTooSmall(
            f"The disk is full: the merge needs {readable(plan.budget.output)}.",
            remedy="Free some space or choose another --output; nothing was left behind.",
        ) from error
    return Merged(folder=partial, plan=plan, tensors=tuple(measured), seconds=time.monotonic() - started)


def _shard(
    shard: Shard, ops: list[Op], inputs: Local, partial: Path, progress: _Progress, emit: Emit
) -> list[Measured]:
    finished = partial / shard.name
    if finished.exists():
        emit(Note(text=f"{shard.name} is there from an earlier run."))
        progress.add(shard.size)
        return []
    _notice_change(shard, ops, inputs)
    from bot.engines.streaming import write_shard  # imports torch, which a plan or a refusal never needs

    in_work = finished.with_name(finished.name + ".part")
    in_work.parent.mkdir(parents=True, exist_ok=True)
    measured = write_shard(shard, ops, inputs, in_work, progress.add)
    os.replace(in_work, finished)
    return measured


def _notice_change(shard: Shard, ops: list[Op], inputs: Local) -> None:
    """The plan was made from headers; the file that is read now must still have the same one."""
    header = read_header(inputs.base / shard.name, file=shard.name)
    if set(header.tensors) != {op.source for op in ops}:
        raise Refused(f"The base's {shard.name} is not the file that was planned for.", remedy="Run the merge again.")


def _write_rest(plan: Plan, inputs: Local, partial: Path) -> None:
    roots = {"base": inputs.base, "adapter": inputs.adapter}
    for asset in plan.assets:
        target = partial / asset.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if asset.content is not None:
            target.write_bytes(asset.content)
        else:
            shutil.copyfile(roots[asset.source] / asset.name, target)
    if plan.index is not None and plan.index_name is not None:
        (partial / plan.index_name).write_bytes(plan.index)


def _by_shard(plan: Plan) -> dict[str, list[Op]]:
    grouped: dict[str, list[Op]] = {}
    for op in sorted(plan.ops, key=lambda op: op.source.start):
        grouped.setdefault(op.target.file, []).append(op)
    return grouped


def left_behind(output: Path) -> int:
    """Bytes on disk that earlier, unfinished merges to this name hold."""
    return sum(path.stat().st_size for other in _partials(output) for path in other.rglob("*") if path.is_file())


def _partials(output: Path) -> list[Path]:
    return list(output.parent.glob(f".{glob.escape(output.name)}.partial-*"))


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which dies with this process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Usage(
            "Another merge into this folder is running.", remedy="Wait for it, or choose another --output."
        ) from error
    finally:
        os.close(descriptor)


class _Progress:
    """Adds up bytes from several threads and tells the listener about every full percent."""

    def __init__(self, emit: Emit, *, total: int) -> None:
        self._emit, self._total, self._done, self._told, self._lock = emit, total, 0, 0, Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._done - self._told >= self._total // 100 or self._done >= self._total:
                self._told = self._done
                self._emit(Moved(stage="merge", done=self._done, total=self._total))
