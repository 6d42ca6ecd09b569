"""Where every tensor of the output lies: files, headers, offsets, and the index. A merge is a patch where it can be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bot.records import Header, Json, Shard, Stored
from bot.weights.headers import STORED_NAMES, TORCH_NAMES, byte_size, write_header

FLOATS = frozenset({"BF16", "F16", "F32"})  # what a merge may cast; integers, booleans and F64 stay as they are
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The output's weight files. `targets`: key → where it goes, for every base tensor."""

    shards: tuple[Shard, ...]
    targets: dict[str, Stored]
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
    return STORED_NAMES[wanted] if wanted is not None and stored.dtype == main else stored.dtype


def lay_out(
    headers: tuple[Header, ...],
    touched: set[str],
    wanted: str | None,
    index: Json | None,
) -> Layout:
    """Lay the output out over the base's own files. `wanted`: a torch dtype name for another storage dtype, or None.

    The base's own header bytes are used again wherever no dtype changes.
    """
    main = main_dtype(headers)
    shards: list[Shard] = []
    targets: dict[str, Stored] = {}
    for header in headers:
        dtypes = [new_dtype(tensor, main, wanted) for tensor in header.tensors]
        same_layout = all(dtype == tensor.dtype for dtype, tensor in zip(dtypes, header.tensors, strict=True))
        if same_layout:
            head, size = header.raw, header.file_size
            targets.update((tensor.key, tensor) for tensor in header.tensors)
        else:
            triples = [(t.key, dtype, t.shape) for t, dtype in zip(header.tensors, dtypes, strict=True)]
            head = write_header(triples, header.metadata or {"format": "pt"})
            size = len(head)
            for key, dtype, shape in triples:
                stop = size + byte_size(dtype, shape)
                targets[key] = Stored(key=key, file=header.file, dtype=dtype, shape=shape, start=size, stop=stop)
                size = stop
        untouched = same_layout and not any(tensor.key in touched for tensor in header.tensors)
        shards.append(Shard(name=header.file, size=size, header=head, same_as_base=untouched))
    index_name = INDEX_NAME if index else None
    return Layout(shards=tuple(shards), targets=targets, index_name=index_name, index=_index(index, targets))


def weights_size(headers: Iterable[Header]) -> int:
    """Bytes of tensor data, headers not counted."""
    return sum(header.file_size - len(header.raw) for header in headers)


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
