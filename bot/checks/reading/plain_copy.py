"""A quantised checkpoint as a folder of plain float32 numbers, for transformers to load like any other.

Written file by file and tensor by tensor: memory stays at one tensor, the disk takes four bytes for every packed weight.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

from bot.checks.reading.checkpoint import INDEX, Checkpoint, Place
from bot.checks.reading.packed import SHELF
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
    by_file: dict[str, list[Place]] = {}
    for place in checkpoint.tensors.values():
        by_file.setdefault(place.stored.file, []).append(place)
    for file, places in by_file.items():
        with (folder / file).open("wb") as opened:
            _write(opened, places)
    if checkpoint.index is not None:
        where = {key: place.stored.file for key, place in checkpoint.tensors.items()}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def without_quantization(config: Json) -> Json:
    """The same config, nested ones too, of a model that is not quantised."""
    return {key: without_quantization(value) if isinstance(value, dict) else value for key, value in config.items()
            if key != QUANTIZATION}  # fmt: skip


def _write(opened: BinaryIO, places: list[Place]) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for place in places:
        size = 4 * place.elements if place.packed else place.stored.stop - place.stored.start
        stored = place.stored
        entries[stored.key] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    opened.write(len(header).to_bytes(8, "little") + header)
    for place in places:
        if place.packed is not None:
            for slab in range(place.packed.slabs):
                opened.write(SHELF.take(place.packed, slab).numpy().data)
        else:
            _copy(place, opened)
    SHELF.clear()


def _copy(place: Place, opened: BinaryIO) -> None:
    left = place.stored.stop - place.stored.start
    with place.path.open("rb") as source:
        source.seek(place.stored.start)
        while left and (content := source.read(min(left, BLOCK))):
            opened.write(content)
            left -= len(content)
    if left:
        raise EOFError(f"{place.path.name} is shorter than its header says")
