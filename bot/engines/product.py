"""Matrix products on a CUDA device, for ranks at which the processor would be the bottleneck.

Only the product moves there: its error bound holds for any order of summation, so that what is settled with it on the
processor is the same bits. TF32, which has ten bits of fraction, stays off.
"""

from __future__ import annotations

from threading import local

import torch

from bot.errors import MachineTooSmall
from bot.weights.rounding import Array


class Product(local):
    """out ← left @ right, each worker with a stream and the last right factor of its own. Raises MachineTooSmall."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._right: tuple[Array, torch.Tensor] | None = None  # there, and the same on the device
        if device == "cuda":
            if not torch.cuda.is_available():
                raise MachineTooSmall(
                    "This torch finds no CUDA device.", remedy="Install torch with CUDA, or pass --device cpu."
                )
            torch.backends.cuda.matmul.allow_tf32 = False

    def __call__(self, left: Array, right: Array, out: Array) -> None:
        """left: rows × k, right: k × columns, out: rows × columns; all of one dtype, float32 or float64."""
        if self._right is None or self._right[0] is not right:
            self._right = right, torch.from_numpy(right.T).to(self._device).T
        there = torch.from_numpy(left).to(self._device) @ self._right[1]
        torch.from_numpy(out).copy_(there)
