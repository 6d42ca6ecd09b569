"""A step of the sweep whose result PEFT's unmerged layer was asked for: a tensor of any method beside LoRA."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bot.checks.rows import Opened
from bot.checks.steps import Parts, Source
from bot.checks.touch import Span
from bot.checks.unmerged import Unmerged


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The tensor is what `unmerged` says of `parameter`, all of it; `uses`: the adapter tensors of its module."""

    module: str
    uses: tuple[str, ...]
    rows: Span
    columns: Span
    unmerged: Unmerged
    parameter: str


class ReadyAsked:
    """Rows of W', seen as the step's matrix. The whole of it is in memory while its rows are compared."""

    def __init__(self, step: Asked, source: Source) -> None:
        self.step = step
        self.view = source.view

    def exact(self, weight: Tensor, low: int, high: int, opened: Opened) -> Tensor:
        """The result in float64."""
        return self.step.unmerged.exact(self.step.parameter).reshape(self.view)[low:high]

    def parts(self, weight: Tensor, low: int, high: int, opened: Opened) -> Parts:
        """`rank` products of numbers as large as the largest: their rounding errors come to the asking's slack."""
        whole = self.step.unmerged.exact(self.step.parameter)
        value = whole.reshape(self.view)[low:high]
        return Parts(
            weight=weight,
            delta=value - weight,
            product=torch.full_like(value, float(whole.abs().max())),
            rank=round(self.step.unmerged.slack * 2.0**53),
        )
