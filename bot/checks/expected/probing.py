"""The weight that a PEFT layer stands for, found by probing it: it is fed the unit vectors (token numbers, unit patches), and
what comes out is its weight, column by column; a zero input gives its bias. All in float64."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bot.checks.expected.float64_mode import float64_mode, without_warnings

BATCH = 1 << 24  # elements of probes and of what they give, at a time: 128 MB of float64


class NoWeight(Exception):
    """A layer that no weight can stand for; the sentence says which."""


def probe_alone(layer: Any, name: str, path: str) -> Tensor:
    """What a layer of a whole model makes of a parameter, float64, where that is; its adapter may be switched off. Raises NoWeight.

    It is probed on the processor, wherever the model is.
    """
    alone = copy.deepcopy(layer).double().cpu()
    alone._disable_adapters = False
    if "dtype" in alone.__dict__:
        alone.__dict__["dtype"] = torch.float64
    with torch.no_grad(), without_warnings(), float64_mode():
        return probe(alone, alone.get_base_layer(), name, path).to(getattr(layer.get_base_layer(), name).device)


def probe(layer: Any, owner: Any, name: str, module: str) -> Tensor:
    """The parameter `name` of `owner`, the module that the layer stands for. Raises NoWeight."""
    if hasattr(layer, "ln_tuning_layers"):
        (tuned,) = layer.ln_tuning_layers.values()
        return getattr(tuned, name).data.double().clone()  # type: ignore[no-any-return]
    if isinstance(owner, nn.Embedding):
        return _embedding(layer, owner)
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return _convolution(layer, owner, name, module)
    if not isinstance(owner, nn.Linear) and type(owner).__name__ != "Conv1D":
        raise NoWeight(f"{module} is a {type(owner).__name__}, which this verifier cannot ask.")
    straight = isinstance(owner, nn.Linear)
    out, into = owner.weight.shape if straight else owner.weight.shape[::-1]
    offset: Tensor = layer(torch.zeros(1, into))[0]
    if name == "bias":
        return offset
    rows = []
    step = max(1, BATCH // (out + into))
    for low in range(0, into, step):
        units = torch.zeros(min(step, into - low), into)
        units[torch.arange(len(units)), torch.arange(low, low + len(units))] = 1.0
        rows.append(layer(units) - offset)
    transposed = torch.cat(rows)  # in × out
    _is_affine(layer, transposed, offset, module)
    return transposed.T.contiguous() if straight else transposed


def _is_affine(layer: Any, transposed: Tensor, offset: Tensor, module: str) -> None:
    probe = torch.randn(3, transposed.shape[0], generator=torch.Generator().manual_seed(0)) * 3.0
    output, wanted = layer(probe), probe @ transposed + offset
    if float((output - wanted).abs().max()) > 1e-8 * float(wanted.abs().max() + 1.0):
        raise NoWeight(f"{module} is not linear: no weight can stand for it.")


def _embedding(layer: Any, owner: Any) -> Tensor:
    scale = getattr(owner, "embed_scale", None)
    if scale is not None:
        owner.embed_scale = torch.ones(()) if isinstance(scale, Tensor) else 1.0
    try:
        step = max(1, BATCH // owner.embedding_dim)
        return torch.cat([
            layer(torch.arange(low, min(owner.num_embeddings, low + step)))
            for low in range(0, owner.num_embeddings, step)
        ])  # fmt: skip
    finally:
        if scale is not None:
            owner.embed_scale = scale


def _convolution(layer: Any, owner: Any, name: str, module: str) -> Tensor:
    """Unit patches, laid so that one output position sees all of a patch and nothing else."""
    at, extents, index = [], [], []
    for axis, kernel in enumerate(owner.kernel_size):
        stride, dilation, padding = owner.stride[axis], owner.dilation[axis], owner.padding[axis]
        if isinstance(padding, str):
            raise NoWeight(f"{module} pads by name ({owner.padding}), which this verifier cannot ask.")
        start = -padding % stride
        at.append(range(start, start + dilation * (kernel - 1) + 1, dilation))
        extents.append(start + dilation * (kernel - 1) + 1 + padding)
        index.append((start + padding) // stride)
    here = (slice(None), slice(None), *index)
    offset: Tensor = layer(torch.zeros(1, owner.in_channels, *extents))[here][0]
    if name == "bias":
        return offset
    count = owner.weight[0].numel()
    per_group = owner.in_channels // owner.groups
    weight = torch.empty_like(owner.weight, dtype=torch.float64)
    tall = owner.out_channels // owner.groups
    for group in range(owner.groups):
        units = torch.zeros(count, owner.in_channels, *extents)
        channels = slice(group * per_group, (group + 1) * per_group)
        offsets = torch.cartesian_prod(*(torch.tensor(list(positions)) for positions in at)).view(-1, len(at))
        for number, offset_in_kernel in enumerate(offsets):
            for channel in range(per_group):
                row = channel * len(offsets) + number
                units[(row, channels.start + channel, *offset_in_kernel.tolist())] = 1.0
        columns = layer(units)[here] - offset  # (channels · kernel) × out
        own = slice(group * tall, (group + 1) * tall)
        others = torch.cat([columns[:, : own.start], columns[:, own.stop :]], dim=1)
        if others.numel() and float(others.abs().max()) > 0:
            raise NoWeight(f"{module}'s adapter mixes the groups of its convolution: no weight can stand for it.")
        weight[own] = columns[:, own].T.reshape(weight[own].shape)
    _is_convolution(layer, owner, weight, offset, module)
    return weight


def _is_convolution(layer: Any, owner: Any, weight: Tensor, offset: Tensor, module: str) -> None:
    extents = [3 * kernel + 2 * stride for kernel, stride in zip(owner.kernel_size, owner.stride, strict=True)]
    probe = torch.randn(1, owner.in_channels, *extents, generator=torch.Generator().manual_seed(0))
    wanted = owner._conv_forward(probe, weight, offset)
    if float((layer(probe) - wanted).abs().max()) > 1e-8 * float(wanted.abs().max() + 1.0):
        raise NoWeight(f"{module}'s adapter is no convolution: no weight can stand for it.")
