"""Safetensors headers: read, distrusted, and written.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian length N, N bytes of JSON, then the
tensors' bytes; offsets count from the end of the JSON, tile the rest of the file without holes, and never overlap).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bot.errors import Refused
from bot.records import Header, Role, Stored
from bot.untrusted import strict_json

PREFIX = 8
MAX_HEADER = 100_000_000  # the format's own limit
LARGEST = 1 << 62  # of an extent or an offset
MOST_TENSORS = 500_000  # of one file; the largest models have 200,000 in all
LONGEST_NAME = 1_000  # characters
MOST_AXES = 64  # torch's limit
FETCH_AGAIN = "Fetch the file again, or take another revision."

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64,
    "I64": 64, "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
STORED_NAMES = {torch_name: stored for stored, torch_name in TORCH_NAMES.items()}


def read_header(path: Path, *, file: str | None = None, role: Role = "base") -> Header:
    """The header of a safetensors file on disk, known to the plan as `file` (default: its own name).

    Raises Refused when the file is truncated or its header lies.
    """
    size, file_name = path.stat().st_size, file or path.name
    with path.open("rb") as opened:
        head = opened.read(PREFIX)
        head += opened.read(header_length(head, file=file_name, file_size=size))
    return parse_header(head, file=file_name, file_size=size, role=role)


def header_length(head: bytes, *, file: str, file_size: int) -> int:
    """How many bytes of JSON follow the first eight. Raises Refused when that cannot be."""
    if len(head) < PREFIX:
        raise _corrupt(file, f"it holds {file_size} bytes")
    length: int = struct.unpack("<Q", head[:PREFIX])[0]
    if length > MAX_HEADER or PREFIX + length > file_size:
        raise _corrupt(file, f"its header claims {length} bytes and the file holds {file_size}")
    return length


def parse_header(head: bytes, *, file: str, file_size: int, role: Role = "base") -> Header:
    """A header from the first bytes of a file. Raises Refused for anything but a whole, honest one."""
    length = header_length(head, file=file, file_size=file_size)
    if len(head) < PREFIX + length:
        raise _corrupt(file, "its header is cut short")
    try:
        entries = strict_json.loads(head[PREFIX : PREFIX + length], _no_repeats)
    except ValueError as error:
        raise _corrupt(file, f"its header is not JSON ({str(error)[:200]})") from error
    if not isinstance(entries, dict):
        raise _corrupt(file, "its header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(file, "its metadata is not a map of strings")
    if len(entries) > MOST_TENSORS:
        raise _corrupt(file, f"it claims {len(entries):,} tensors, and {MOST_TENSORS:,} are the most that are read")
    data_start = PREFIX + length
    tensors = sorted(
        (_tensor(key, entry, file, data_start, role) for key, entry in entries.items()),
        key=lambda t: (t.start, t.stop),
    )
    _tile(tensors, file, data_start, file_size)
    raw = head[:data_start]
    return Header(file=file, raw=raw, file_size=file_size, metadata=metadata, tensors=tuple(tensors))


def write_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """The header (length prefix included) of a file that holds `(key, dtype, shape)` in this order, without holes."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for key, dtype, shape in tensors:
        stop = offset + byte_size(dtype, shape)
        entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % PREFIX)  # tensors begin 8-aligned, as the reference implementation writes them
    return struct.pack("<Q", len(text)) + text


def byte_size(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that a tensor takes in a file. Raises KeyError for a dtype that the format does not know."""
    return (BITS[dtype] * math.prod(shape) + 7) // 8


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name stands twice")
    return entries


def _tensor(key: str, entry: Any, file: str, data_start: int, role: Role) -> Stored:
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, start, stop)
    except (TypeError, KeyError, ValueError) as error:
        raise _corrupt(file, f"the entry of {key[:200]!r} is malformed") from error
    if len(key) > LONGEST_NAME:
        raise _corrupt(file, f"{key[:60]!r} … of {len(key):,} characters is no name of a tensor")
    honest = isinstance(dtype, str) and len(shape) <= MOST_AXES
    if not honest or not all(type(number) is int and 0 <= number <= LARGEST for number in numbers):
        raise _corrupt(file, f"the entry of {key!r} is malformed")
    if dtype not in BITS:
        raise _corrupt(file, f"{key!r} has the unknown dtype {dtype!r}")
    if stop - start != byte_size(dtype, shape):
        needed = byte_size(dtype, shape)
        words = str(needed) if needed < LARGEST else "more than any file has"
        raise _corrupt(file, f"{key!r} has {stop - start} bytes where its shape needs {words}")
    begin = data_start + start
    return Stored(key=key, file=file, dtype=dtype, shape=shape, start=begin, stop=data_start + stop, role=role)


def _tile(tensors: list[Stored], file: str, data_start: int, file_size: int) -> None:
    position = data_start
    for tensor in tensors:
        if tensor.start != position:
            kind = "overlaps the tensor before it" if tensor.start < position else "leaves a hole before it"
            raise _corrupt(file, f"{tensor.key!r} {kind}")
        position = tensor.stop
    if position != file_size:
        raise _corrupt(file, f"its tensors end at byte {position} and the file at {file_size}")


def _corrupt(file: str, detail: str) -> Refused:
    return Refused(f"{file} is not a whole safetensors file: {detail}.", remedy=FETCH_AGAIN)
