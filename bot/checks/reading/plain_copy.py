"""A quantised checkpoint as a folder of plain float32 numbers, for transformers to load like any other.

Written file by file and tensor by tensor: memory stays at one tensor, the disk takes four bytes for every packed weight.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

from bot.checks.reading.checkpoint import INDEX, Checkpoint, TensorRef
from bot.records import Json

BLOCK = 1 << 22  # bytes
QUANTIZATION = "quantization_config"


def write_plain(checkpoint: Checkpoint, folder: Path) -> Path:
    """`checkpoint` (with the model's own tensors) as `folder`: its other files are links. Returns the folder."""
    folder.mkdir(parents=True)
    weights = {header.file for header in checkpoint.headers} | {INDEX, "config.json"}
    for path in sorted(checkpoint.folder.iterdir()):
        if path.is_file() and path.name not in weights:
            (folder / path.name).symlink_to(path.resolve())
    config = without_quantization(json.loads((checkpoint.folder / "config.json").read_bytes()))
    (folder / "config.json").write_text(json.dumps(config))
    by_file: dict[str, list[TensorRef]] = {}
    for ref in checkpoint.tensors.values():
        by_file.setdefault(ref.stored.file, []).append(ref)
    for file, refs in by_file.items():
        with (folder / file).open("wb") as opened:
            _write(opened, refs)
    if checkpoint.index is not None:
        where = {key: ref.stored.file for key, ref in checkpoint.tensors.items()}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def without_quantization(config: Json) -> Json:
    """The same config, nested ones too, of a model that is not quantised."""
    return {key: without_quantization(value) if isinstance(value, dict) else value for key, value in config.items()
            if key != QUANTIZATION}  # fmt: skip


def _write(opened: BinaryIO, refs: list[TensorRef]) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for ref in refs:
        size = 4 * ref.elements if ref.packed else ref.stored.stop - ref.stored.start
        stored = ref.stored
        entries[stored.key] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    opened.write(len(header).to_bytes(8, "little") + header)
    for ref in refs:
        if ref.packed is not None:
            for slab in range(ref.packed.slabs):
                opened.write(ref.packed.numbers(slab).data)
            ref.packed.cache.clear()
        else:
            _copy(ref, opened)


def _copy(ref: TensorRef, opened: BinaryIO) -> None:
    left = ref.stored.stop - ref.stored.start
    with ref.path.open("rb") as source:
        source.seek(ref.stored.start)
        while left and (content := source.read(min(left, BLOCK))):
            opened.write(content)
            left -= len(content)
    if left:
        raise EOFError(f"{ref.path.name} is shorter than its header says")
