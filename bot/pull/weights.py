"""Where the weights are: which files hold them, why others are refused, and their headers by range reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from bot.checkpoint.header import PREFIX, header_length, parse_header
from bot.errors import Refused
from bot.events import Emit, Note
from bot.input_files import is_stated
from bot.pull import subfolders
from bot.pull.damage import fetched_again
from bot.pull.texts import read_json
from bot.records import Header, Source

if TYPE_CHECKING:
    from bot.hub import Hub

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PICKLES = re.compile(r"[^/]+\.(bin|pt|pth|ckpt|pkl)")
OTHER_FORMATS = re.compile(r"[^/]+\.(h5|msgpack|gguf|onnx|npz)")
FIRST_READ = 1 << 17  # bytes; nearly all headers fit, so that one request is enough


def base_files(source: Source, emit: Emit) -> tuple[str, ...]:
    """The base's weight files, in the order of its index. Raises Refused where there are none to merge into."""
    names = {entry.name for entry in source.files}
    if INDEX in names:
        if SINGLE in names:
            text = f"{source.called} holds both {INDEX} and {SINGLE}; the shards that the index names are used."
            emit(Note(text=text, level="warning"))
        return _shards(source, names)
    if "config.json" not in names:
        _refuse_as_base(source, names)
    if SINGLE in names:
        return (SINGLE,)
    alone = sorted(name for name in names if re.fullmatch(r"[^/]+\.safetensors", name) and name != ADAPTER)
    if alone:
        raise Refused(
            f"{source.called} holds {alone[0]}, but neither {SINGLE} nor {INDEX}, so transformers would not load it.",
            remedy=f"Rename it to {SINGLE} if it is whole, or name a revision that has one of the two.",
        )
    _refuse_as_base(source, names)
    raise AssertionError("unreachable")


def _refuse_as_base(source: Source, names: set[str]) -> None:
    """Raises Refused with the reason that fits what is there."""
    if "adapter_config.json" in names:
        raise Refused(
            f"{source.called}, given as the base, is itself an adapter.",
            remedy="Merge that adapter into its own base first, then name the result with --base.",
        )
    if "config.json" not in names:
        raise Refused(
            f"{source.called} has no config.json, so it is not a transformers model.",
            remedy="Name the base with --base owner/name.",
        )
    pickles = sorted(name for name in names if PICKLES.fullmatch(name))
    if pickles:
        raise Refused(
            f"The weights of {source.called} are pickles ({pickles[0]}), which can run code when they are read.",
            remedy="Convert them to safetensors, or name a revision that has them with --base owner/name@revision "
            "(a conversion PR is refs/pr/N); --allow-pickle is for adapters only.",
        )
    others = sorted(name for name in names if OTHER_FORMATS.fullmatch(name))
    held = f"; it holds {others[0]}" if others else ""
    raise Refused(
        f"{source.called} has no weights in safetensors (looked for {INDEX} and {SINGLE}){held}.",
        remedy="Name a base that has safetensors with --base owner/name.",
    )


def _shards(source: Source, names: set[str]) -> tuple[str, ...]:
    weight_map = read_json(source, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise Refused(
            f"{INDEX} of {source.called} has no weight_map from tensors to files.",
            remedy="Repair the index, or name another revision.",
        )
    shards = tuple(dict.fromkeys(weight_map.values()))
    for shard in shards:
        if not is_inside(shard) or not shard.endswith(".safetensors"):
            raise Refused(
                f"{INDEX} of {source.called} names {shard[:200]!r}, which is no safetensors file inside its folder.",
                remedy="Do not trust this repo; name another base.",
            )
    missing = [shard for shard in shards if shard not in names]
    if missing:
        raise Refused(
            f"{source.called} lacks {len(missing)} of the {len(shards)} shards its index names, e.g. {missing[0]}.",
            remedy="Complete the upload, or name another revision.",
        )
    return shards


def is_inside(name: str) -> bool:
    """Whether a file name from an untrusted index stays in its folder."""
    path = PurePosixPath(name)
    odd = any(ord(letter) < 32 or letter in "\\:" for letter in name)
    return bool(name) and not odd and not path.is_absolute() and ".." not in path.parts and str(path) == name


def adapter_files(source: Source, *, allow_pickle: bool) -> tuple[str, ...]:
    """The adapter's weight file. Raises Refused where it is missing, or a pickle that was not allowed."""
    names = {entry.name for entry in source.files}
    if "adapter_config.json" not in names:
        _refuse_as_adapter(source, names)
    if ADAPTER in names:
        return (ADAPTER,)
    if PICKLE not in names:
        raise Refused(
            f"{source.called} holds no adapter weights (looked for {ADAPTER} and {PICKLE}).",
            remedy="Check that the adapter was saved whole, or name another revision.",
        )
    if not allow_pickle:
        raise Refused(
            f"The adapter's weights are a pickle ({PICKLE}), which can run code when it is read.",
            remedy=f"Save it again as {ADAPTER}, or pass --allow-pickle: it is then read by torch's restricted loader.",
        )
    return (PICKLE,)


def _refuse_as_adapter(source: Source, names: set[str]) -> None:
    if nested := subfolders.adapters_in(source.files):
        remedy = f"It has adapters deeper ({subfolders.listed(nested)}); name one of them: {subfolders.named(source, nested[-1])}."
    elif "config.json" in names:
        remedy = "It looks like a whole model: the adapter comes first, the base is named with --base."
    else:
        remedy = "Name the repo or folder that PEFT's save_pretrained wrote."
    raise Refused(f"{source.called} has no adapter_config.json, so it is not a PEFT adapter.", remedy=remedy)


def read_headers(source: Source, names: Sequence[str], hub: Hub, emit: Emit) -> Source:
    """The source with the headers of its weight files; a few kilobytes of each are read."""
    sizes = {entry.name: entry.size for entry in source.files}
    with ThreadPoolExecutor(max_workers=8) as pool:
        headers = tuple(pool.map(lambda name: _header(source, name, sizes[name], hub, emit), names))
    return replace(source, headers=headers)


def _header(source: Source, name: str, size: int, hub: Hub, emit: Emit) -> Header:

    def read() -> Header:
        head = read_span(source, name, 0, min(FIRST_READ, size), hub)
        needed = PREFIX + header_length(head, file=name, file_size=size)
        if needed > len(head):
            head += read_span(source, name, len(head), needed, hub)
        return parse_header(head[:needed], file=name, file_size=size, role=source.role)

    try:
        return read()
    except Refused:
        if not _was_damaged(source, name, hub):
            raise
        emit(fetched_again(name, source.called))
        return read()  # from the Hub


def _was_damaged(source: Source, name: str, hub: Hub) -> bool:
    """Whether a file that makes no sense lay damaged in the cache, and was removed there."""
    there = source.in_repo(name)
    path = None if source.repo is None else hub.cached(source.repo, source.sha, there)
    entry = next(entry for entry in source.files if entry.name == name)
    if source.repo is None or path is None:
        return False
    with path.open("rb") as opened:
        if is_stated(iter(lambda: opened.read(1 << 20), b""), path.stat().st_size, entry.sha256, entry.oid):
            return False
    hub.drop(source.repo, source.sha, there)
    return True


def read_span(source: Source, name: str, start: int, stop: int, hub: Hub) -> bytes:
    """Bytes `start` to `stop` of a file of the source."""
    if source.repo is not None:
        return hub.read_span(source.repo, source.sha, source.in_repo(name), start, stop)
    assert source.ref.folder is not None
    with (source.ref.folder / name).open("rb") as opened:
        opened.seek(start)
        return opened.read(stop - start)
