"""Which experts a mixture's routers choose: noted once, then held fast while other weights are measured.

A rounding that flips one choice moves a few tokens by as much as the experts differ, which says nothing about the merge.
So every model is led along the choices of the unmerged one, and how often it would have chosen otherwise is counted.
Caught are `topk` wherever it is called, `argmax` and `max` inside a router: what mixtures of transformers 5 choose by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ROUTER = re.compile(r"(Router|Gating|Gate)$")  # class names
MIXTURE = re.compile(r"(Router|Gating|Experts|MoE|Moe|MoeBlock)$")
TOPK = (torch.topk, Tensor.topk)
ARGMAX = (torch.argmax, Tensor.argmax)
MAX = (torch.max, Tensor.max)
CHOOSING = frozenset(TOPK + ARGMAX + MAX)


def is_mixture(model: nn.Module) -> bool:
    """Whether some module is a router, or holds experts, by the name of its class."""
    return any(MIXTURE.search(type(module).__name__) for module in model.modules())


class Choices(TorchFunctionMode):
    """The choices of one forward pass: noted where none are given, else imposed one after the other.

    `made`: indices (int64) by call, in order. `count`: those that were imposed, `flipped`: of these, those that the model
    would not have made; `free`: calls that nothing could be imposed on, since their shape was another.
    """

    def __init__(self, given: list[Tensor] | None = None) -> None:
        super().__init__()
        self.made: list[Tensor] = []
        self.count = self.flipped = self.free = 0
        self._given = None if given is None else iter(given)
        self._depth = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func not in CHOOSING:
            return result
        wanted = self._wanted(func, args, result)
        if wanted is None:
            return result
        if self._given is None:
            self.made.append(wanted.cpu())
            return result
        imposed = next(self._given, None)
        if imposed is None or imposed.shape != wanted.shape:
            self.free += 1
            return result
        imposed = imposed.to(wanted.device)
        dim = _dimension(func, args, kwargs)
        self._tally(wanted, imposed, dim if func in TOPK else None)
        if func in ARGMAX:
            return imposed
        keeps = func in TOPK or imposed.dim() == args[0].dim()
        index = imposed if keeps else imposed.unsqueeze(dim)
        values = args[0].gather(dim, index)
        return type(result)((values if keeps else values.squeeze(dim), imposed))

    def _wanted(self, func: Any, args: Any, result: Any) -> Tensor | None:
        """The indices that a call came to, where it is a choice."""
        chooses = func in TOPK or (self._depth > 0 and func in ARGMAX + MAX)
        if not chooses or not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            return None
        indices = result if func in ARGMAX else getattr(result, "indices", None)
        return indices if isinstance(indices, Tensor) and indices.dim() else None

    def _tally(self, wanted: Tensor, imposed: Tensor, dim: int | None) -> None:
        """By sets: the order in which the same experts are named along `dim` does not matter. None: one is chosen."""
        own, other = (x.unsqueeze(-1) if dim is None else x.movedim(dim, -1) for x in (wanted, imposed))
        self.count += imposed.numel()
        self.flipped += int((other.unsqueeze(-1) != own.unsqueeze(-2)).all(-1).sum())

    @contextmanager
    def along(self, model: nn.Module) -> Iterator[None]:
        """For as long as the block runs, the choices of `model` are caught."""
        with self.watching(model), self:
            yield

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """For as long as the block runs, it is known when a router of `model` is at work."""
        routers = [module for module in model.modules() if ROUTER.search(type(module).__name__)]
        hooks = [router.register_forward_pre_hook(lambda *_: self._move(1)) for router in routers]
        hooks += [router.register_forward_hook(lambda *_: self._move(-1)) for router in routers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _move(self, by: int) -> None:
        self._depth += by


def _dimension(func: Any, args: Any, kwargs: Any) -> int:
    position = 2 if func in TOPK else 1
    return int(kwargs.get("dim", args[position] if len(args) > position else -1))
