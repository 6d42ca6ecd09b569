"""merge: carry out a plan into a folder that has not got its final name yet.

A shard that is whole has its name there; the one in work ends in `.part` (see `bot.partial_folder`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from bot.budget import readable
from bot.checkpoint.header import read_header
from bot.engines.vocabulary import compare_vocabulary
from bot.errors import MachineTooSmall, Refused
from bot.events import Emit, Note, Stage, StepProgress, beating
from bot.input_files import Keeper, holding
from bot.partial_folder import noted, write_note
from bot.records import Local, Merged, Op, PeftMerge, Plan, Shard, Stored
from bot.report_document import UNVOUCHED

if TYPE_CHECKING:
    from bot.engines.peft_layers import PeftLayers
    from bot.engines.streaming import EachPiece
    from bot.numerics.rounder import Arithmetic


def merge(plan: Plan, inputs: Local, partial: Path, emit: Emit) -> Merged:
    """Write every shard, the index and the assets of `plan` into `partial`.

    Every input file is hashed while it is read. Raises Damaged where one is not what its source states, Refused for inputs
    whose bytes forbid the merge, that change meanwhile, or that change nothing (unless the plan is forced), and MachineTooSmall when
    the disk fills up.
    """
    emit(Stage(name="merge", title=f"Merging {plan.method} into {plan.dtype}"))
    with merging(plan, inputs, partial, emit) as work:
        if not plan.forced:
            work.require_change()
        for shard in plan.shards:
            work.shard(shard)
        work.write_rest()
    return Merged(folder=partial, plan=plan, sha256=work.sha256)


@contextmanager
def merging(plan: Plan, inputs: Local, partial: Path, emit: Emit) -> Iterator[MergeRun]:
    """A merge whose weight files are made one by one, on request; every input file that is read is held to what its source
    states, at the latest when the block ends."""
    with holding(inputs.files) as keeper, _full_disk(plan), beating(emit, "merge", "Preparing") as listener:
        progress = _Progress(listener, total=sum(shard.size for shard in plan.shards))
        keeper.require(held.path for held in inputs.files)
        keeper.follow(held.path for held in inputs.files if held.role == "adapter")
        work = MergeRun(plan, inputs, partial, progress, listener, keeper)
        _require_equal(plan, inputs)
        _refuse_idle_changes(plan, inputs)
        compare_vocabulary(plan, inputs, listener)
        progress.begin()
        yield work


@contextmanager
def _full_disk(plan: Plan) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if plan.disk == "shards" and plan.budget.by_shard is not None:
            raise MachineTooSmall(
                f"The disk is full: one weight file after the other needs {readable(plan.budget.by_shard.disk)}.",
                remedy="Free some space, or point HF_HOME at a larger disk, and run it again: nothing is visible on the Hub, and "
                "the weight files that were sent are not made again.",
            ) from error
        raise MachineTooSmall(
            f"The disk is full: the merge needs {readable(plan.budget.output)}.",
            remedy="Free some space or choose another --output; nothing was left behind.",
        ) from error


class MergeRun:
    """The shards of one merge, one after the other."""

    def __init__(
        self, plan: Plan, inputs: Local, partial: Path, progress: _Progress, emit: Emit, keeper: Keeper
    ) -> None:
        self.plan, self.inputs, self.partial, self.progress, self.emit = plan, inputs, partial, progress, emit
        self.keeper = keeper
        self.sha256: dict[str, str] = {}
        self._ops: dict[str, list[Op]] = {}
        for op in plan.ops:
            self._ops.setdefault(op.target.file, []).append(op)
        self._planned = _planned(plan)
        self._checked: set[str] = set()
        self._before = noted(partial)  # sha256 of the shards that earlier runs have finished

    def require_change(self) -> None:
        """Raise Refused where nothing would be other than the base: before anything is written."""
        from bot.engines.effect import no_effect, refusal  # imports numpy

        files = sorted({file for op in self.plan.ops for file in _files_of(op.source)})
        for file in files:
            self._notice_change(file)
        unchanged = no_effect(self.plan, self.inputs, lambda: self._layers, self._arithmetic)
        if unchanged is not None:
            self.keeper.follow(self.inputs.base / file for file in files)
            self.keeper.check_hashes()  # zeros may be what is left of a damaged file, which has a remedy of its own
            raise refusal(unchanged, self.plan)

    def shard(self, shard: Shard, each_piece: EachPiece | None = None) -> None:
        """Write one weight file, unless an earlier run has. `each_piece`: see `write_shard`; then the file has its name from the
        beginning, for those who read what there is of it."""
        finished = self.partial / shard.name
        if self._is_finished(finished, shard.name):
            self.emit(Note(text=f"{shard.name} is there from an earlier run."))
            self.progress.add(shard.size, kept=True)
            return
        ops = self._ops.get(shard.name, [])
        files = {shard.name, *(file for op in ops for file in _files_of(op.source))}
        for file in sorted(files):
            self._notice_change(file)
        if not shard.same_as_base:
            self.keeper.follow(self.inputs.base / file for file in sorted(files))
        from bot.engines.streaming import write_shard  # imports numpy, which a plan or a refusal never needs

        in_work = finished if each_piece else finished.with_name(finished.name + ".part")
        in_work.parent.mkdir(parents=True, exist_ok=True)
        arithmetic = self._arithmetic
        sha256 = write_shard(shard, ops, self.inputs, in_work, self.progress.add, self._peft, arithmetic, each_piece)
        if shard.same_as_base:  # what was written is what was read
            self.keeper.note_sha256(self.inputs.base / shard.name, sha256)
        self.keeper.check_hashes()  # a shard that has its name is made of sound files
        self.sha256[shard.name] = sha256
        write_note(self.partial, self._before | self.sha256)
        os.replace(in_work, finished)

    def write_rest(self) -> None:
        """The index and every file that is no weight."""
        _write_rest(self.plan, self.inputs, self.partial, self.keeper)

    def _is_finished(self, path: Path, name: str) -> bool:
        """Whether an earlier run has written this shard, and the disk has kept it."""
        if not path.exists() or name not in self._before:
            return False
        with path.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        if sha256 != self._before[name]:
            return False
        self.sha256[name] = sha256
        return True

    def _notice_change(self, file: str) -> None:
        """The plan was made from headers; the file that is read now must still have the same one."""
        if file in self._checked or file not in self._planned:
            return
        self._checked.add(file)
        self.keeper.require([self.inputs.base / file])
        if set(read_header(self.inputs.base / file, file=file).tensors) != self._planned[file]:
            raise Refused(f"The base's {file} is not the file that was planned for.", remedy="Run the merge again.")

    def _peft(self, ops: Sequence[PeftMerge], descriptor: int) -> None:
        """What PEFT's own layers make, written into the open shard."""
        from bot.engines.peft_layers import write_peft_ops

        clamps = self._arithmetic.clamps
        write_peft_ops(ops, self._layers, lambda _: descriptor, self.progress.add, clamps)

    @cached_property
    def _arithmetic(self) -> Arithmetic:
        from bot.numerics.rounder import Arithmetic

        clamps = self.plan.options.clamps
        if self.plan.device == "cpu":
            return Arithmetic(clamps=clamps)
        from bot.engines.cuda_product import CudaProduct

        def fall_back(why: str) -> None:
            self.emit(Note(text=f"{why} The merge goes on without it: the bytes are the same."))

        insisting = self.plan.options.device == "cuda"
        multiply = CudaProduct(self.plan.device, None if insisting else fall_back)
        return Arithmetic(multiply=multiply, clamps=clamps)

    @cached_property
    def _layers(self) -> PeftLayers:
        from bot.engines.peft_layers import PeftLayers

        return PeftLayers(
            base=self.inputs.base,
            adapter=self.inputs.adapter,
            config=json.loads((self.inputs.base / "config.json").read_bytes()),
            adapter_config=json.loads((self.inputs.adapter / "adapter_config.json").read_bytes()),
            ops=[op for op in self.plan.ops if isinstance(op, PeftMerge)],
        )


def _files_of(source: Stored | None) -> set[str]:
    """The base's files that a tensor is read from."""
    if source is None or source.role == "adapter":
        return set()
    return {part.file for _, part in source.packed.parts} if source.packed else {source.file}


def _planned(plan: Plan) -> dict[str, set[Stored]]:
    """The base's tensors by file, as the plan saw them; files of which it does not name every tensor are left out."""
    by_file: dict[str, set[Stored]] = {}
    for stored in plan.base_tensors:
        by_file.setdefault(stored.file, set()).add(stored)
    return by_file


def _require_equal(plan: Plan, inputs: Local) -> None:
    """Raises Refused where adapter tensors that must say the same do not."""
    if not plan.must_be_equal:
        return
    from bot.engines.effect import differ

    for first, second, transposed in plan.must_be_equal:
        if differ(first, second, transposed, inputs):
            raise Refused(
                f"The adapter ties {first.key} and {second.key}, and they differ.",
                remedy="Train it without ensure_weight_tying, or save it again.",
            )


def _refuse_idle_changes(plan: Plan, inputs: Local) -> None:
    """Raises Refused where the adapter changes a module that the model never calls after all."""
    if not plan.idle:
        return
    from bot.engines.effect import is_nonzero

    for stored in plan.idle:
        if is_nonzero(stored, inputs):
            raise Refused(
                f"The adapter changes {stored.key}, which belongs to a layer that shares another's keys and values.",
                remedy="Name the base that it was trained on with --base: this one has no such weight.",
            )


def _write_rest(plan: Plan, inputs: Local, partial: Path, keeper: Keeper) -> None:
    for name in UNVOUCHED:  # of a run that was killed before the folder got its name
        (partial / name).unlink(missing_ok=True)
    roots = {"base": inputs.base, "adapter": inputs.adapter}
    for asset in plan.assets:
        target = partial / asset.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if asset.content is not None:
            target.write_bytes(asset.content)
        else:
            keeper.copy(roots[asset.source] / asset.origin, target)
    if plan.index is not None and plan.index_name is not None:
        (partial / plan.index_name).write_bytes(plan.index)


class _Progress:
    """Adds up bytes from several threads and tells the listener."""

    def __init__(self, emit: Emit, *, total: int) -> None:
        self._emit, self._total, self._done, self._kept, self._lock = emit, total, 0, 0, Lock()

    def begin(self) -> None:
        """The first byte is about to be made."""
        self._emit(StepProgress(stage="merge", done=0, total=self._total))

    def add(self, count: int, *, kept: bool = False) -> None:
        """`kept`: they were there before."""
        with self._lock:
            self._done += count
            self._kept += count if kept else 0
            self._emit(StepProgress(stage="merge", done=self._done, total=self._total, kept=self._kept))
