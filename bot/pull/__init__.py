"""pull: pins what was asked for, reading headers and small files only; then fetches the files that a plan needs.

`pin` downloads no weight (save for an adapter that is a pickle, whose tensors have no header to read). `fetch` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bot.errors import NotFound, Refused
from bot.events import Emit, Note, Stage, StepProgress
from bot.hub import is_repo_id
from bot.hub.names import REVISION as REVISION
from bot.pull import other_weights, pickles, quantised_base, subfolders, vocabulary, weights
from bot.pull.base_of_adapter import vouch as vouch
from bot.pull.damage import MEMORY, hold
from bot.pull.damage import dropping as dropping
from bot.pull.damage import merged_files as merged_files
from bot.pull.damage import repo_files as repo_files
from bot.pull.damage import require_headers as require_headers
from bot.pull.damage import with_sound_files as with_sound_files
from bot.pull.folders import hashed_since as hashed_since
from bot.pull.folders import pin_folder, with_hashes
from bot.pull.folders import sha_of_all as sha_of_all
from bot.pull.hashes import Hashes
from bot.pull.link_folder import gather
from bot.pull.listing import require_usable as require_usable
from bot.pull.quantised_base import original_at_hand as original_at_hand
from bot.pull.refs import is_subfolder as is_subfolder
from bot.pull.refs import parse_ref as parse_ref
from bot.pull.relevant_files import counting
from bot.pull.repos import pin_repo
from bot.pull.texts import card_of as card_of
from bot.pull.texts import read_json
from bot.records import Local, Plan, Ref, Request, Role, Source, Sources

if TYPE_CHECKING:
    from bot.hub import Hub

STAGE = "pull"

# --- pin ----------------------------------------------------------------------------------------------------------


def pin(
    request: Request,
    hub: Hub,
    emit: Emit,
    bases: dict[Ref, Source] | None = None,
    *,
    afresh: bool = False,
    later: bool = False,
) -> Sources:
    """All inputs at a commit, with their small files and the headers of their weights.

    `bases`: those that were pinned before, which are not looked at again; a new one is added to it. `afresh`: every byte
    of a folder is read, also where an earlier run hashed the file and nothing has changed since; `later`: but for the weights of a
    base, which whoever compares them hashes, and has hashed_since.
    """
    hashes = Hashes(None if afresh else hub.scratch / MEMORY)
    adapter, *more = (
        _with_headers(_pin_one("adapter", ref, hub, emit), request, hub, emit, hashes)
        for ref in (request.adapter, *request.more)
    )
    base_ref = request.base or base_of(adapter)
    bases = {} if bases is None else bases
    if base_ref not in bases:

        def pinned(ref: Ref) -> Source:
            return _with_headers(_pin_base(ref, request.base is None, hub, emit), request, hub, emit, hashes, later)

        bases[base_ref] = quantised_base.select_base(pinned(base_ref), request.options.base_weights, pinned, hub, emit)
    base = bases[base_ref]
    adapter, *more = (vocabulary.with_added_tokens(source, base, hub) for source in (adapter, *more))
    if any(vocabulary.is_read(source) for source in (adapter, *more)):
        base = vocabulary.with_added_tokens(base, adapter, hub)
    return Sources(base=base, adapter=adapter, more=tuple(more))


def pin_weights(ref: Ref, hub: Hub, emit: Emit) -> Source:
    """A model on the Hub, at its commit, with the headers of its weight files: of the rest of its files only what a merge reads."""
    source = _pin_one("base", ref, hub, emit)
    return weights.read_headers(source, weights.base_files(source, emit), hub, emit)


def _pin_base(ref: Ref, named: bool, hub: Hub, emit: Emit) -> Source:
    """The base. `named`: by the adapter's config, and not by a person."""
    try:
        base = _pin_one("base", ref, hub, emit)
        return vouch(base, hub, emit, "The adapter's config") if named else base
    except NotFound as missing:
        if not named:
            raise
        raise NotFound(
            f"The base that the adapter's config names cannot be used: {missing.what}",
            remedy=f"{missing.remedy} Or name the base with --base.",
        ) from missing


def base_of(adapter: Source) -> Ref:
    """The base that the adapter's config names. Raises Refused for anything that is not safely one."""
    config = read_json(adapter, "adapter_config.json")
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name.strip():
        raise Refused("The adapter's config names no base model.", remedy="Name it with --base owner/name.")
    if not is_repo_id(name):
        # Followed, a path would read this machine's files for whoever wrote the adapter, in a folder as on the Hub.
        raise Refused(
            f"The adapter's config names {name[:200]!r} as its base, which is not a Hub repo's name.",
            remedy="Name the base with --base owner/name (or --base ./folder).",
        )
    revision = config.get("revision")
    if revision and not (isinstance(revision, str) and REVISION.fullmatch(revision)):
        raise Refused(
            f"The adapter's config names {str(revision)[:200]!r} as its base's revision, which cannot be one.",
            remedy="Name the base with --base owner/name@revision.",
        )
    return Ref(text=f"{name}@{revision}" if revision else name, repo=name, revision=revision or None)


def _pin_one(role: Role, ref: Ref, hub: Hub, emit: Emit) -> Source:
    if ref.folder is not None:
        if "/" in ref.text and ref.text[0] not in "./~" and is_repo_id(ref.text):
            text = f"{ref.text} is read from the folder of that name; write {ref.text}@main to mean the Hub."
            emit(Note(text=text, level="warning"))
        if ref.folder.is_dir():
            require_usable(ref.folder)
        return pin_folder(role, ref)
    return pin_repo(role, ref, hub, emit)


def _with_headers(
    source: Source, request: Request, hub: Hub, emit: Emit, hashes: Hashes, later: bool = False
) -> Source:
    """The source with its weight files found and their headers read; a folder is hashed after that, since a file that is no
    checkpoint need not be read for hours. `later`: but for its weight files."""
    if source.role == "base":
        names = weights.base_files(source, emit)
    else:
        names = weights.adapter_files(source, allow_pickle=request.options.allow_pickle)
        other_weights.refuse_others(source)
        _note_others(source, emit)
    source = counting(source, names)
    if names == (weights.PICKLE,):
        return pickles.convert(_with_hashes(source, emit, hashes), hub, emit)
    return _with_hashes(weights.read_headers(source, names, hub, emit), emit, hashes, names if later else ())


def _note_others(source: Source, emit: Emit) -> None:
    if others := subfolders.adapters_in(source.files):
        listed, example = subfolders.listed(others), subfolders.named(source, others[-1])
        emit(Note(text=f"{source.called} holds other adapters too ({listed}); {example} names one."))


def _with_hashes(source: Source, emit: Emit, hashes: Hashes, later: Sequence[str] = ()) -> Source:
    return source if source.ref.folder is None else with_hashes(source, emit, hashes, later)


# --- fetch --------------------------------------------------------------------------------------------------------


def fetch(sources: Sources, names: Plan | Mapping[Role, Sequence[str]], hub: Hub, emit: Emit) -> Local:
    """Folders that hold every file named (by role, or all that a plan needs) and the small files read by `pin`.

    What is wanted of the adapter is wanted of every adapter that has it.
    """
    wanted = needed(sources, names) if isinstance(names, Plan) else {role: set(files) for role, files in names.items()}
    lists = [(source, _wanted_of(source, wanted)) for source in (sources.base, *sources.adapters)]
    meter = _Meter(sum(_to_come(source, names, hub) for source, names in lists), emit)
    if meter.total:
        emit(Stage(name=STAGE, title=f"Downloading {meter.total:,} bytes"))
        meter.arrived(0)
    base, *adapters = folders = [_folder(source, names, hub, meter) for source, names in lists]
    files = [
        hold(source, entry, folder, ours=pickles.is_converted(source, entry.name, hub))
        for (source, names), folder in zip(lists, folders, strict=True)
        for entry in source.files
        if entry.name in names
    ]
    return Local(base=base, adapter=adapters[0], adapters=tuple(adapters), files=tuple(files))


def needed(sources: Sources, plan: Plan) -> dict[Role, set[str]]:
    """The files a plan reads: all weights, and the assets that are copied."""
    wanted: dict[Role, set[str]] = {
        "base": {header.file for header in sources.base.headers},
        "adapter": {header.file for source in sources.adapters for header in source.headers},
    }
    for asset in plan.assets:
        if asset.content is None:
            wanted[asset.source].add(asset.origin)
    return wanted


def _wanted_of(source: Source, wanted: Mapping[Role, set[str]]) -> list[str]:
    there = {entry.name for entry in source.files}
    return sorted({*(name for name in wanted.get(source.role, ()) if name in there), *source.texts})


def _folder(source: Source, names: Sequence[str], hub: Hub, meter: _Meter) -> Path:
    given = [name for name in names if not pickles.is_converted(source, name, hub)]
    if source.ref.folder is not None:
        folder = source.ref.folder
    else:
        assert source.repo is not None
        folder = hub.download(source.repo, source.sha, map(source.in_repo, given), meter.arrived)
    if not source.subfolder and len(given) == len(names):
        return folder
    kind = "gathered" if len(given) == len(names) else "converted"
    return gather(pickles.derived_folder(source, hub, kind), {name: folder / source.in_repo(name) for name in given})


def _to_come(source: Source, names: Sequence[str], hub: Hub) -> int:
    """Bytes that are not on this disk yet."""
    if source.repo is None:
        return 0
    absent = (entry for entry in source.files if entry.name in names and not entry.here)
    return sum(e.size for e in absent if hub.cached(source.repo, source.sha, e.path or e.name) is None)


class _Meter:
    """Counts the bytes of all downloads of one run."""

    def __init__(self, total: int, emit: Emit) -> None:
        self.total, self.done, self.emit = total, 0, emit

    def arrived(self, amount: int) -> None:
        self.done += amount
        self.emit(StepProgress(stage=STAGE, done=min(self.done, self.total), total=self.total))


__all__ = ["base_of", "fetch", "needed", "pin"]
