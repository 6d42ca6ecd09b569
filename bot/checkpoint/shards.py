"""Where every tensor of the output lies: files, headers, offsets, and the index. A merge is a patch where it can be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bot.checkpoint.header import STORED_NAMES, TORCH_NAMES, byte_size, write_header
from bot.records import Copy, Header, Json, Op, Quantize, Shard, Stored

FLOATS = frozenset({"BF16", "F16", "F32"})  # what a merge may cast; integers, booleans and F64 stay as they are
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class OutputLayout:
    """The output's weight files, and its ops with the offsets of their targets."""

    shards: tuple[Shard, ...]
    ops: tuple[Op, ...]
    index_name: str | None
    index: bytes | None


def main_dtype(headers: Iterable[Header]) -> str:
    """The floating-point dtype that holds the most bytes, in safetensors' spelling; F32 for a file without floats."""
    totals: dict[str, int] = {}
    for header in headers:
        for tensor in header.tensors:
            if tensor.dtype in FLOATS:
                totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.stop - tensor.start
    return max(totals, key=lambda dtype: totals[dtype]) if totals else "F32"


def new_dtype(stored: Stored, main: str, wanted: str | None) -> str:
    """The dtype a tensor takes. Tensors kept apart from the model's main dtype (float32 routers, norms) keep theirs."""
    if stored.packed is not None:
        return STORED_NAMES[wanted] if wanted is not None else main
    return STORED_NAMES[wanted] if wanted is not None and stored.dtype == main else stored.dtype


def lay_out(headers: tuple[Header, ...], ops: tuple[Op, ...], index: Json | None) -> OutputLayout:
    """Lay the output out over the base's own files; `ops` are in file order, their targets without offsets.

    `headers`: what the base's files hold, a quantised weight's parts each by themselves. Those parts may lie in any of the
    files, and a file from which nothing is kept has no place in the output. The base's own header bytes are used again
    wherever the tensors of a file stay what they are.
    """
    shards: list[Shard] = []
    placed: list[Op] = []
    by_file: dict[str, list[Op]] = {header.file: [] for header in headers}
    for op in ops:
        by_file[op.target.file].append(op)
    for header in headers:
        inside = by_file[header.file]
        if not inside:
            continue  # every tensor of it was dropped, or is a part of a weight that lies elsewhere
        wanted = [(t.key, t.dtype, t.shape) for op in inside for t in stored_targets(op)]
        plain = not any(isinstance(op, Quantize) or (op.source and op.source.packed) for op in inside)
        if plain and wanted == [(tensor.key, tensor.dtype, tensor.shape) for tensor in header.tensors]:
            head, size = header.raw, header.file_size
            made = [replace(op, target=tensor) for op, tensor in zip(inside, header.tensors, strict=True)]
        else:
            head = write_header(wanted, header.metadata or {"format": "pt"})
            made, size = [], len(head)
            for op in inside:
                placed_op, size = _placed(op, size)
                made.append(placed_op)
        same = head is header.raw and all(isinstance(op, Copy) and op.source.file == header.file for op in made)
        shards.append(Shard(name=header.file, size=size, header=head, same_as_base=same))
        placed += made
    index_name = INDEX_NAME if index else None
    targets = {target.key: target for op in placed for target in stored_targets(op)}
    return OutputLayout(shards=tuple(shards), ops=tuple(placed), index_name=index_name, index=_index(index, targets))


def stored_targets(op: Op) -> tuple[Stored, ...]:
    """The tensors that an op writes."""
    return op.parts if isinstance(op, Quantize) else (op.target,)


def _placed(op: Op, start: int) -> tuple[Op, int]:
    """The op with its targets laid from `start` on, and where the next one begins."""
    targets = []
    for target in stored_targets(op):
        stop = start + byte_size(target.dtype, target.shape)
        targets.append(replace(target, start=start, stop=stop))
        start = stop
    if isinstance(op, Quantize):
        return replace(op, parts=tuple(targets)), start
    return replace(op, target=targets[0]), start


def torch_name(stored_dtype: str) -> str:
    """bfloat16 for BF16, and so on; the stored spelling itself for dtypes that a merge leaves alone."""
    return TORCH_NAMES.get(stored_dtype, stored_dtype)


def _index(index: Json | None, targets: Mapping[str, Stored]) -> bytes | None:
    """The base's index with the true total_size; every other entry of its metadata is kept."""
    if index is None:
        return None
    total = sum(target.stop - target.start for target in targets.values())
    kept = index.get("metadata")
    metadata = {**(kept if isinstance(kept, dict) else {}), "total_size": total}
    document = {**index, "metadata": metadata, "weight_map": {k: t.file for k, t in sorted(targets.items())}}
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
