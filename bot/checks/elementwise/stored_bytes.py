"""Parts of quantised weights, compared byte by byte."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from bot.checks.reading.checkpoint import TensorRef
from bot.checks.reading.packed import read_component
from bot.records import Json


def equal(first: Tensor, second: Tensor) -> bool:
    """The same bytes in whatever shape; JSON (a quantisation state) by what it says."""
    mine, theirs = _raw(first), _raw(second)
    if torch.equal(mine, theirs):
        return True
    states = [_json(mine), _json(theirs)]
    return states[0] is not None and states[0] == states[1]


def differing(first: Tensor, second: Tensor) -> int:
    """How many bytes of two tensors of one size differ."""
    return int((_raw(first) != _raw(second)).sum())


def equals_stored(value: Tensor, ref: TensorRef | None) -> bool:
    """Whether a part is there, and is that."""
    return ref is not None and equal(value, read_component(ref))


def count(value: Tensor, ref: TensorRef | None) -> str:
    """How much of a part is another one, for a report."""
    if ref is None:
        return " (it is missing)"
    theirs = read_component(ref)
    if _raw(value).shape != _raw(theirs).shape:
        return f" ({_raw(theirs).numel()} bytes for {_raw(value).numel()})"
    return f" ({differing(value, theirs):,} of {_raw(value).numel():,} bytes differ)"


def _raw(value: Tensor) -> Tensor:
    return value.detach().contiguous().reshape(-1).view(torch.uint8)


def _json(raw: Tensor) -> Json | None:
    try:
        content = json.loads(bytes(raw[:4096].tolist()))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
