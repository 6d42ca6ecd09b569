"""Whether a merged model is the base's in all that its adapter does not change, so that both can share one forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bot.checks.behaviour.control import parameters

# What a config says of where it comes from, and of how the weights are stored.
ORIGIN = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "architectures")


class NotJoint(Exception):
    """These models cannot be run together: one by one they can."""


def require_same(plain: Any, merged: Any, changed: set[str]) -> None:
    """The merged model is the base's but for the parameters `changed`: class, config, every other parameter and buffer. Raises
    NotJoint."""
    if type(plain) is not type(merged) or _config(plain) != _config(merged):
        raise NotJoint("the merged model is of another class, or has another config")
    own, others = _parameters(plain), _parameters(merged)
    if own.keys() != others.keys() or not changed <= own.keys():
        raise NotJoint("the merged model has other parameters")
    for name, weight in own.items():
        other = others[name]
        if weight.shape != other.shape or weight.dtype != other.dtype or weight.device != other.device:
            raise NotJoint(f"{name} has another shape")
        if name not in changed and not same_bits(weight, other):
            raise NotJoint(f"{name} is not the base's")
    buffers = dict(plain.named_buffers())
    for name, buffer in merged.named_buffers():
        own_buffer = buffers.get(name, buffers.get(_inside(name)))
        if own_buffer is None or not torch.equal(buffer, own_buffer):
            raise NotJoint(f"{name} is not the base's")


def same_bits(first: Tensor, second: Tensor) -> bool:
    """As many numbers of one dtype, compared eight bytes at a time, which takes a quarter of the time."""
    raw = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)]
    whole = raw[0].numel() // 8 * 8
    return all(
        torch.equal(*pair)
        for pair in ([part[:whole].view(torch.int64) for part in raw], [part[whole:] for part in raw])
    )


def _inside(name: str) -> str:
    """A buffer of a module that PEFT has wrapped."""
    path, _, last = name.rpartition(".")
    return f"{path}.base_layer.{last}"


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {f"{path}.{name}": weight for path, _, name, weight in parameters(model)}


def _config(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.config.to_dict().items() if name not in ORIGIN}
