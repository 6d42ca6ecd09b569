"""A merged repo proven again where the disk does not hold it and its base: one weight file after the other."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot.assets import files_to_prove
from bot.attestation import attest, require_writable
from bot.budget import readable
from bot.by_shard.base_files import BaseFiles
from bot.by_shard.disk_room import DiskRoom
from bot.by_shard.journal import Finished
from bot.by_shard.shard_proof import ShardProof
from bot.errors import Refused
from bot.events import Emit, Note, Stage, StepProgress
from bot.input_files import holding
from bot.machine import look
from bot.one_adapter import one_adapter
from bot.options import Options
from bot.pull import fetch, pin_weights, repo_files, with_sound_files
from bot.records import Json, ProofDevice, Ref, Report, Shard, Source
from bot.report_page.writing import require_page_folder, write_page
from bot.reverify import Claimed, HowHard, claims_of, form_of, reverify, subject_of
from bot.shard_needs import ShardNeeds, needs_of

if TYPE_CHECKING:
    from bot.hub import Hub, Pinned

WHAT = "One weight file after the other"


def reverify_where_it_fits(
    merged: Ref, base: Ref | None, adapters: Sequence[Ref], options: Options, hub: Hub, emit: Emit,
    attestation: Path | None = None, page: Path | None = None, **measuring: Any,
) -> Report:  # fmt: skip
    """Re-prove a merged repo or folder: as a whole, or, where that does not fit on the disk or was asked for so, by weight files.

    As `reverify` in all else. Raises Refused where --disk shards was asked for and cannot be had.
    """
    require_writable(attestation, merged.folder)
    require_page_folder(page)
    reads_all = measuring.get("signed_by") or measuring.get("eval_tasks")
    why_not = "--signed-by and --eval read the whole model" if reads_all else _why_not(merged, options)
    if options.disk == "shards" and why_not:
        raise Refused(
            f"{why_not}, so that it cannot be proven one weight file after the other.", remedy="Leave --disk at auto."
        )
    if why_not or (options.disk == "auto" and _fits(merged, hub)):
        return reverify(merged, base, adapters, options, hub, emit, attestation, page, **measuring)

    def attempt() -> Report:
        report = _by_shard(merged, base, adapters, options, hub, emit, attestation, **measuring)
        if page is not None:
            write_page(page, report.document)
        return report

    return with_sound_files(attempt, hub, emit)


def _why_not(merged: Ref, options: Options) -> str | None:
    if options.disk == "whole":
        return "--disk whole was asked for"
    if merged.repo is None:
        return "The merged model lies on this disk"
    return "--verify full runs the whole model" if options.verify == "full" else None


def _fits(merged: Ref, hub: Hub) -> bool:
    """Whether merged model and base, of about its size, fit in the download cache."""
    assert merged.repo is not None
    absent = sum(entry.size for entry in hub.pin(merged.repo, merged.revision).files if not entry.here)
    return 2 * absent <= look(hub.cache_dir).disk_free


def _by_shard(
    merged: Ref, base: Ref | None, adapters: Sequence[Ref], options: Options, hub: Hub, emit: Emit,
    attestation: Path | None, **measuring: Any,
) -> Report:  # fmt: skip
    emit(Stage(name="pull", title="Reading the merged model and its inputs"))
    assert merged.repo is not None
    pinned = hub.pin(merged.repo, merged.revision)
    model = pin_weights(replace(merged, revision=pinned.sha), hub, emit)
    weights = {header.file for header in model.headers}
    small = hub.download(pinned.repo, pinned.sha, [entry.name for entry in pinned.files if entry.name not in weights])
    with holding(_small_files(pinned, small, weights)) as keeper:
        keeper.follow(path for path in small.rglob("*") if path.is_file())
        claimed = claims_of(small, base, adapters, options, hub, emit)
        form = form_of(claimed.merge, options)
        if form["quantize"] not in ("none", "same") or form["base_weights"] == "simulate-nf4":
            raise _as_a_whole()
        staging = Path(tempfile.mkdtemp(prefix="verify-", dir=_scratch(hub)))
        try:
            report = _Proof(claimed, model, pinned, small, staging, options, hub, emit).run(**measuring)
            if attestation is not None:
                attest(attestation, small, report, hub.address)
            return report
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _as_a_whole() -> Refused:
    return Refused(
        "A result that is quantised anew, or of quantised weights that were simulated, is measured as a whole.",
        remedy="Verify it with --disk whole.",
    )


def _scratch(hub: Hub) -> Path:
    hub.scratch.mkdir(parents=True, exist_ok=True)
    return hub.scratch


def _small_files(pinned: Pinned, folder: Path, weights: set[str]) -> tuple[Any, ...]:
    """What is not a weight, and must be as the repo states."""
    return repo_files(
        replace(pinned, files=tuple(entry for entry in pinned.files if entry.name not in weights)), folder
    )


def _level(options: Options) -> HowHard:
    """How hard to look, and what is not run and why; no model runs anywhere."""
    if options.verify == "files":
        return "files", tuple((name, "--verify files was asked for") for name in ("weights", "full")), ProofDevice()
    return "weights", (("full", "needs the whole model on the disk"),), ProofDevice()


class _Proof:
    """Merged and base file after file: fetched, compared, dropped; while one is compared the next one comes."""

    def __init__(
        self, claimed: Claimed, model: Source, pinned: Pinned, small: Path, staging: Path, options: Options, hub: Hub, emit: Emit
    ) -> None:  # fmt: skip
        self._claimed, self._model, self._options, self._hub, self._emit = claimed, model, options, hub, emit
        self._merged = BaseFiles(model, small, staging / "merged", staging / "merged-arrivals", hub)
        self._staging, self._sha256 = staging, dict[str, str]()
        self._stated = {entry.name: entry.sha256 for entry in pinned.files}

    def run(self, **measuring: Any) -> Report:
        """The whole of it."""
        claimed, hub, emit = self._claimed, self._hub, self._emit
        sources = claimed.sources
        wanted = files_to_prove(sources)
        weights = {header.file for header in sources.base.headers}
        wanted["base"] = [name for name in wanted["base"] if name not in weights]
        local = fetch(sources, wanted, hub, emit)
        with holding(local.files) as keeper, one_adapter(claimed.together, local, hub, emit) as local:
            keeper.follow(held.path for held in local.files if held.repo is not None)
            base = BaseFiles(sources.base, local.base, self._staging / "base", self._staging / "arrivals", hub)
            local = replace(local, base=base.folder)
            subject = subject_of(
                self._merged.folder, claimed, local, _level(self._options), self._options, hub, **measuring
            )
            # Where the base's form is kept and nothing is written in it anew, every tensor is compared as the bytes that it is.
            keeps_form = subject.quantize == "same"
            proof = ShardProof(replace(subject, hashed=self._sha256, required=False, as_stored=keeps_form), emit)
            for files in (base, self._merged):
                files.cut()
            if proof.read_adapter() and keeps_form:
                raise _as_a_whole()
            finished = self._compare(base, proof)
            self._sha256.update({each.name: each.sha256 for each in finished})
            return proof.finish(finished)

    def _compare(self, base: BaseFiles, proof: ShardProof) -> list[Finished]:
        sizes = {header.file: header.file_size for header in self._claimed.sources.base.headers}
        pairs = [self._pair(header.file, header.file_size, proof, sizes) for header in self._model.headers]
        base.expect(of_base for _, of_base in pairs)
        unit = max((max(a.to_fetch(self._merged.here), b.to_fetch(base.here)) for a, b in pairs), default=0)
        disk, done, finished = DiskRoom(3 * unit), 0, list[Finished]()
        total = sum(shard.shard.size for shard, _ in pairs)

        def bring(pair: tuple[ShardNeeds, ShardNeeds]) -> None:
            for files, need in zip((self._merged, base), pair, strict=True):
                disk.take(need.to_fetch(files.here))
                files.fetch(need, lambda _: None)
                files.require_stated(need, lambda _: None)

        with ThreadPoolExecutor(1) as fetcher:
            try:
                coming: list[Future[None]] = [fetcher.submit(bring, pair) for pair in pairs[:1]]
                for pair, after in zip_longest(pairs, pairs[1:]):
                    coming.pop().result()
                    self._merged.put_in(pair[0])
                    base.put_in(pair[1])
                    if after is not None:
                        coming.append(fetcher.submit(bring, after))
                    finished.append(self._prove(pair[0].shard, proof))
                    for files, need in zip((self._merged, base), pair, strict=True):
                        files.clear(need)
                        disk.give(need.to_fetch(files.here))
                    done += pair[0].shard.size
                    self._emit(StepProgress(stage="verify", done=done, total=total, what=WHAT))
            except BaseException:
                disk.close()
                raise
        text = f"Compared one weight file after the other: {readable(disk.most)} of disk at most."
        self._emit(Note(text=text))
        return finished

    def _pair(self, name: str, size: int, proof: ShardProof, sizes: dict[str, int]) -> tuple[ShardNeeds, ShardNeeds]:
        """What is fetched of the merged repo, and of the base, for one weight file."""
        shard = Shard(name=name, size=size, header=b"", same_as_base=False)
        whole = ShardNeeds(shard=shard, whole=((name, size),), spans=())
        return whole, ShardNeeds(shard=shard, **needs_of(proof.reads(name), sizes))

    def _prove(self, shard: Shard, proof: ShardProof) -> Finished:
        sha256 = self._merged.sha256_of(shard.name)
        tallies: dict[str, Json] = proof.begin(shard.name).finish()
        return Finished(name=shard.name, sha256=sha256, size=shard.size, sample=b"", copied=False, tallies=tallies)
