"""The weights of one module at a time, read from a folder's safetensors files as from_pretrained would load them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from re import search
from typing import Any

import torch
from torch import Tensor, nn

from bot.checkpoint.header import read_header
from bot.checks.behaviour.control import parameters
from bot.checks.behaviour.empty_model import is_empty
from bot.checks.reading.checkpoint import SINGLE, TensorRef, read_checkpoint
from bot.checks.reading.model_skeleton import Skeleton
from bot.checks.reading.rows import Opened
from bot.checks.reading.torch_dtypes import RAW
from bot.records import Json


class StoredWeights:
    """A folder's weights by the names of a model's parameters. `model` is empty, and has no PEFT in it yet.

    `dtype`: what floating-point weights are held in; `device`: where, and where they are put together. Raises Refused for files
    that are not whole.
    """

    def __init__(self, folder: Path, model: Any, dtype: torch.dtype, device: str = "cpu") -> None:
        self._tensors = _tensors(folder)
        self._dtype, self.device = dtype, device
        self._kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        self.skeleton = Skeleton(model, {key: ref.stored.shape for key, ref in self._tensors.items()})
        self.report = _report(self.skeleton)
        self.model = model

    def source_of(self, name: str) -> str | None:
        """The parameter that this one is loaded as: itself, or the one that it is tied to; None where the folder has neither."""
        groups, tied = self.skeleton.groups, self.skeleton.tied
        if name in groups:
            return name
        root = tied.get(name, name)
        return next((other for other in (root, *(a for a, b in tied.items() if b == root)) if other in groups), None)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Parameters and buffers by their names in the model; those that the folder does not have are left out."""
        wanted = {name: source for name in names if (source := self.source_of(name)) is not None}
        made: dict[str, Tensor] = {}
        with Opened() as opened:
            for first in dict.fromkeys(self.skeleton.groups[source][0] for source in wanted.values()):
                keys = [key for _, key in self.skeleton.groups[first][1]]
                made |= self.skeleton.load(first, {key: self._tensor(opened, key, first) for key in keys})
        return {name: self._held(made[source]) for name, source in wanted.items()}

    def rows(self, name: str, low: int, high: int) -> Tensor:
        """Some rows of a parameter that is stored as it is."""
        key = self.key_of(name)
        assert key is not None
        with Opened() as opened:
            return self._held(self._tensor(opened, key, name, range(low, high)))

    def key_of(self, name: str) -> str | None:
        """The stored tensor that a parameter is, where it is stored as it is."""
        source = self.source_of(name)
        _, sources = self.skeleton.groups[source] if source else ("", [])
        return sources[-1][1] if source and sources[0][0] is None else None

    def _tensor(self, opened: Opened, key: str, name: str, rows: range | None = None) -> Tensor:
        """A stored tensor, or some of its rows, for the parameter `name`: float32, or the parameter's own dtype."""
        ref = self._tensors[key]
        kind, shape, start, stop = RAW[ref.stored.dtype], ref.stored.shape, ref.stored.start, ref.stored.stop
        if rows is not None:
            size = (stop - start) // shape[0]
            start, stop, shape = start + rows.start * size, start + rows.stop * size, (len(rows), *shape[1:])
        raw = torch.from_numpy(opened.bytes(ref.path, start, stop - start))
        tensor = (raw.view(kind) if len(raw) else torch.empty(0, dtype=kind)).view(shape).to(self.device)
        wanted = self._kinds.get(name, torch.float32)
        return tensor.to(torch.float32 if wanted.is_floating_point else wanted)

    def _held(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def fill(self, names: Iterable[str]) -> None:
        """Give the model these parameters and buffers for good. Raises Unstored for a parameter that the folder does not have."""
        names = list(names)
        values = self.read(names)
        for name in names:
            path, _, own = name.rpartition(".")
            owner = self.model.get_submodule(path)
            if name in values and own in owner._buffers:
                owner._buffers[own] = values[name]
            elif name in values:
                setattr(owner, own, nn.Parameter(values[name], requires_grad=False))
            elif own in owner._parameters:
                raise Unstored(name)

    @contextmanager
    def loaded(self, module: nn.Module, name: str) -> Iterator[None]:
        """For as long as the block runs, a part of the model called `name` has its weights. Raises Unstored for one without."""
        empties = [
            (f"{path}.{own}", owner, own, weight)
            for path, owner, own, weight in parameters(module, name)
            if is_empty(weight)
        ]
        values = self.read([bare for bare, *_ in empties])
        try:
            for bare, owner, own, weight in empties:
                value = values.get(bare)
                if value is None or value.shape != weight.shape:
                    raise Unstored(bare)
                setattr(owner, own, nn.Parameter(value, requires_grad=False))
            yield
        finally:
            for _, owner, own, weight in empties:
                setattr(owner, own, weight)


class Unstored(Exception):
    """A parameter of the model that the folder does not have, or in another shape."""


def _tensors(folder: Path) -> Mapping[str, TensorRef]:
    """A loader takes the single file where there is one, whatever an index says. Raises Refused for a file that is not whole."""
    if (path := folder / SINGLE).is_file():
        return {stored.key: TensorRef(path=path, stored=stored) for stored in read_header(path).tensors}
    return read_checkpoint(folder).tensors


def _report(skeleton: Skeleton) -> Json:
    """What from_pretrained says of a loading: missing, unexpected and mismatched keys, but for those that the model's class
    expects to be (PreTrainedModel._adjust_missing_and_unexpected_keys)."""
    model, known, groups = skeleton.model, skeleton.known, skeleton.groups
    renamed = {key: skeleton.rename(key) for key in skeleton.shapes}
    plain = {name: key for key, (name, pattern) in renamed.items() if pattern is None and name in known}
    buffers = [name for name, _ in model.named_buffers()]
    spare = [*(model._keys_to_ignore_on_load_unexpected or ())]
    spare += [r"rotary_emb\.inv_freq"] * any(name.endswith("rotary_emb.inv_freq") for name in buffers)
    spare += [r"(^|\.)position_ids$"] * any(name.endswith("position_ids") for name in buffers)
    lost = {name for name in known if name not in groups}
    tied = skeleton.tied
    for target, source in tied.items():
        if any(name in groups for name in (target, source, *(a for a, b in tied.items() if b == source))):
            lost -= {target, source}
    return {
        "missing_keys": _but(lost, model._keys_to_ignore_on_load_missing or ()),
        "unexpected_keys": _but({name for name, _ in renamed.values() if name not in known}, spare),
        "mismatched_keys": {name for name, key in plain.items() if skeleton.shapes[key] != tuple(known[name].shape)},
    }


def _but(names: set[str], patterns: Iterable[str]) -> set[str]:
    return {name for name in names if not any(search(pattern, name) for pattern in patterns)}
