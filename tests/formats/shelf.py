"""Quantised checkpoints in a folder, read back by the readers: whole, in pieces of odd sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from bot import formats
from bot.checkpoint.header import read_header
from bot.formats.base import Unpacked
from bot.records import Json, Stored


def save(folder: Path, tensors: Mapping[str, torch.Tensor], config: Json) -> Path:
    """One weight file and its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def headers(folder: Path) -> dict[str, Stored]:
    return {tensor.key: tensor for path in sorted(folder.glob("*.safetensors")) for tensor in read_header(path).tensors}


def reader_of(folder: Path) -> Any:
    """(tensor, first byte, bytes) → what the file holds there."""
    mapped = {path.name: np.memmap(path, np.uint8, "r") for path in folder.glob("*.safetensors")}

    def read(stored: Stored, start: int, count: int) -> np.ndarray:
        assert stored.packed is None
        assert 0 <= start <= start + count <= stored.stop - stored.start
        return np.array(mapped[stored.file][stored.start + start : stored.start + start + count])

    return read


def unpacked(folder: Path, card: Json | None = None) -> Unpacked:
    """What the reader makes of the folder."""
    config, stored, read = json.loads((folder / "config.json").read_text()), headers(folder), reader_of(folder)
    small = {
        k: read(stored[k], 0, stored[k].stop - stored[k].start).tobytes() for k in formats.small_keys(stored, config)
    }
    found = formats.unpack(stored, config, small, card or {})
    if not found.refusals:
        assert claimed(found) == stored.keys(), "a tensor was lost"
        order = [stored[_main(tensor)] for tensor in found.tensors.values()]
        assert order == sorted(order, key=lambda tensor: tensor.start), "not in file order"
    return found


def _main(tensor: Stored) -> str:
    return tensor.packed.parts[0][1].key if tensor.packed else tensor.key


def claimed(found: Unpacked) -> set[str]:
    """The file's tensors that the model's tensors account for."""
    return {
        key
        for tensor in found.tensors.values()
        for key in ([part.key for _, part in tensor.packed.parts] if tensor.packed else [tensor.key])
    }


def values(folder: Path) -> dict[str, torch.Tensor]:
    """Every packed weight as the reader gives it, float32."""
    found = unpacked(folder)
    assert not found.refusals, found.refusals
    return {key: rows(tensor, reader_of(folder)) for key, tensor in found.tensors.items() if tensor.packed}


def rows(tensor: Stored, read: Any) -> torch.Tensor:
    """A logical tensor, read once whole and once in pieces."""
    opened = formats.open_packed(tensor, read)
    height = tensor.shape[0] * (tensor.shape[1] if len(tensor.shape) == 3 else 1)
    width = math.prod(tensor.shape) // height
    whole = opened.rows(0, height)
    assert whole.shape == (height, width)
    assert whole.dtype == np.float32
    starts = list(range(0, height, 13))
    pieces = [opened.rows(first, min(13, height - first)) for first in reversed(starts)]
    np.testing.assert_array_equal(np.concatenate(pieces[::-1]), whole)
    return torch.from_numpy(np.ascontiguousarray(whole)).reshape(tensor.shape)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Bit for bit, the signs of zeros too."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float32
    differing = int((ours.view(torch.int32) != theirs.contiguous().view(torch.int32)).sum())
    assert differing == 0, f"{differing} of {ours.numel()} differ"


def written(
    writer: Any, key: str, weight: torch.Tensor, header: Mapping[str, tuple[str, tuple[int, ...]]] | None = None
) -> Any:
    """What a writer stores of a weight: the bytes of each part, every byte once."""
    shape = tuple(weight.shape)
    flat = weight.reshape(-1, shape[-1]).numpy()
    parts = writer.parts(key, shape)
    held = {name: np.zeros(formats_bytes(dtype, size), np.uint8) for name, dtype, size in parts}
    times = {name: np.zeros(len(content), np.uint8) for name, content in held.items()}
    buffer = np.empty_like(flat)

    def take(first: int, count: int) -> np.ndarray:
        buffer[:count] = flat[first : first + count]  # as the engine does: the next call takes the same buffer
        return buffer[:count]

    for name, offset, content in writer.quantise(key, take, shape):
        assert content.dtype == np.uint8
        held[name][offset : offset + content.size] = content.reshape(-1)
        times[name][offset : offset + content.size] += 1
    assert all((count == 1).all() for count in times.values())
    return {name: torch.from_numpy(held[name]).view(TORCH[dtype]).reshape(size) for name, dtype, size in parts}


TORCH = {
    "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu, "BF16": torch.bfloat16, "F16": torch.float16,
    "F32": torch.float32, "U8": torch.uint8, "I8": torch.int8,
}  # fmt: skip


def formats_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    from bot.checkpoint.header import byte_size

    return byte_size(dtype, shape)
