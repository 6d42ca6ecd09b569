"""A saved checkpoint as Names sees it, and the reverse of a Placement: its pieces put together again, as numbers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bot.checkpoint.header import read_header
from bot.checkpoint.locations import Names, Placement
from bot.records import Stored


class Checkpoint:
    """The tensors of a folder, and their Names."""

    def __init__(self, folder: Path) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        stored: dict[str, Stored] = {}
        for file in sorted(folder.glob("*.safetensors")):
            self.tensors |= load_file(file)
            stored |= {tensor.key: tensor for tensor in read_header(file).tensors}
        self.names = Names(stored, json.loads((folder / "config.json").read_text()))

    def put_together(self, placement: Placement) -> torch.Tensor:
        """The logical matrices of a placement, experts × out × in. Fails where its pieces overlap or leave a hole."""
        height = max(rectangle.out[1] for rectangle in placement.rectangles)
        width = max(rectangle.into[1] for rectangle in placement.rectangles)
        whole = torch.full((placement.experts, height, width), torch.nan)
        for rectangle in placement.rectangles:
            seen = self.tensors[rectangle.key].reshape(rectangle.view)
            part = seen[slice(*rectangle.at_rows, rectangle.step), slice(*rectangle.at_columns)]
            place = whole[rectangle.expert, slice(*rectangle.out), slice(*rectangle.into)]
            assert place.isnan().all(), f"two pieces of {placement.parameter} overlap"
            place.copy_(part.T if rectangle.transposed else part)
        assert not whole.isnan().any(), f"the pieces of {placement.parameter} leave a hole"
        return whole


def number(model: torch.nn.Module) -> None:
    """Give every element of a model its own number (exact in float32 up to 16.7 million)."""
    start = 0
    with torch.no_grad():
        for parameter in model.parameters():
            numbers = torch.arange(start, start + parameter.numel(), dtype=torch.float32)
            parameter.copy_(numbers.reshape(parameter.shape))
            start += parameter.numel()
    assert start < 2**24


def rewrite(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, object] | None = None) -> Path:
    """Write a checkpoint by hand: these tensors, and config.json with some entries changed (None: taken out)."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")
    kept = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))
    return folder
