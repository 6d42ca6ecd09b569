"""Headers are distrusted: whole and honest, or refused."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bot.checkpoint.header import parse_header, read_header, write_header
from bot.errors import Refused


def file_of(entries: object, data: int) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def entry(start: int, stop: int, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


LIES = {
    "an empty file": b"",
    "three bytes": b"abc",
    "a header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "a header of exabytes": struct.pack("<Q", 1 << 62) + b"{}",
    "a header that is not JSON": file_of(b"{nope", 0),
    "a header that is a list": file_of([], 0),
    "overlapping tensors": file_of({"a": entry(0, 4), "b": entry(2, 6)}, 6),
    "a hole between tensors": file_of({"a": entry(0, 4), "b": entry(5, 9)}, 9),
    "an offset beyond the end": file_of({"a": entry(0, 40)}, 4),
    "bytes after the last tensor": file_of({"a": entry(0, 4)}, 9),
    "a negative offset": file_of({"a": entry(-4, 0, shape=[4])}, 4),
    "a fractional offset": file_of({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4.0]}}, 4),
    "a size that the shape does not need": file_of({"a": entry(0, 4, dtype="F32", shape=[2])}, 4),
    "an unknown dtype": file_of({"a": entry(0, 4, dtype="F12")}, 4),
    "an entry without offsets": file_of({"a": {"dtype": "U8", "shape": [4]}}, 4),
    "one name twice": file_of(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":[]}', 0),
    "metadata that is no map of strings": file_of({"__metadata__": {"n": 1}}, 0),
    "JSON nested without end": file_of(b"[" * 100_000, 0),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_dishonest_header_is_refused(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(LIES[lie])
    with pytest.raises(Refused) as refused:
        read_header(path)
    assert refused.value.what.startswith("model.safetensors is not a whole safetensors file: ")
    assert refused.value.remedy


def test_a_file_of_the_reference_implementation_is_read_as_it_is(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(2, 3), "a": torch.arange(5), "empty": torch.zeros(0, 4), "scalar": torch.tensor(1.5)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    raw = (tmp_path / "x.safetensors").read_bytes()
    assert header.metadata == {"format": "pt"}
    assert raw.startswith(header.raw)
    assert {t.key: t.shape for t in header.tensors} == {k: tuple(v.shape) for k, v in tensors.items()}
    for stored in header.tensors:
        assert raw[stored.start : stored.stop] == tensors[stored.key].numpy().tobytes()


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
dtypes = st.sampled_from(["F32", "BF16", "F16", "I64", "BOOL", "F8_E4M3"])


@settings(max_examples=100, deadline=None)
@given(tensors=st.dictionaries(st.text(max_size=20), st.tuples(dtypes, shapes), max_size=6))
def test_what_we_write_we_and_the_reference_implementation_read_back(tensors, tmp_path_factory) -> None:
    from safetensors import safe_open

    tensors.pop("__metadata__", None)
    head = write_header([(k, d, s) for k, (d, s) in tensors.items()], {"format": "pt"})
    size = sum(parse_size(d, s) for d, s in tensors.values())
    header = parse_header(head, file="x", file_size=len(head) + size)
    assert {t.key: (t.dtype, t.shape) for t in header.tensors} == tensors
    path = tmp_path_factory.mktemp("h") / "x.safetensors"
    path.write_bytes(head + bytes(size))
    with safe_open(path, "pt") as opened:
        assert sorted(opened.keys()) == sorted(tensors)


def parse_size(dtype: str, shape: tuple[int, ...]) -> int:
    count = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "BOOL": 1, "F8_E4M3": 1}[dtype]
    for extent in shape:
        count *= extent
    return count


@settings(max_examples=300, deadline=None)
@given(noise=st.binary(max_size=200), claimed=st.integers(0, 300))
def test_noise_is_refused_and_nothing_else(noise: bytes, claimed: int) -> None:
    content = struct.pack("<Q", claimed) + noise
    with suppress(Refused):
        parse_header(content, file="x", file_size=len(content))
