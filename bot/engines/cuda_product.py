"""Matrix products on a CUDA device, for ranks at which the processor would be the bottleneck.

Only the product moves there: its error bound holds for any order of summation, so that what is settled with it on the
processor is the same bits. TF32, which has ten bits of fraction, stays off.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock, local

import numpy as np
import torch

from bot.errors import MachineTooSmall
from bot.numerics.rounding import Array


class CudaProduct:
    """out ← left @ right, each worker with a stream and the last right factor of its own.

    `fall_back` is told, once, why the device is of no use, and the processor multiplies; without it that raises
    MachineTooSmall.
    """

    def __init__(self, device: str, fall_back: Callable[[str], None] | None = None) -> None:
        self._device, self._fall_back = torch.device(device), fall_back
        self._gone, self._lock, self._own = False, Lock(), local()
        if device != "cuda":
            return
        torch.backends.cuda.matmul.allow_tf32 = False
        if torch.cuda.is_available():
            return
        if fall_back is None:
            raise MachineTooSmall(
                "This torch finds no CUDA device.", remedy="Install torch with CUDA, or pass --device cpu."
            )
        self._leave("This torch finds no CUDA device.")

    def __call__(self, left: Array, right: Array, out: Array) -> None:
        """left: rows × k, right: k × columns, out: rows × columns; all of one dtype, float32 or float64."""
        if not self._gone:
            try:
                self._there(left, right, out)
                return
            # Out of its memory, or a driver that fails: torch has no narrower name for both.
            except RuntimeError as error:
                words = " ".join(str(error).split())[:120]
                if self._fall_back is None:
                    raise MachineTooSmall(
                        f"The GPU could not multiply: {words}.", remedy="Free it, or pass --device cpu."
                    ) from error
                self._leave(f"The GPU could not multiply: {words}.")
        np.matmul(left, right, out=out)

    def _there(self, left: Array, right: Array, out: Array) -> None:
        held = getattr(self._own, "right", None)  # of this worker: there, and the same on the device
        if held is None or held[0] is not right:
            held = self._own.right = right, torch.from_numpy(right.T).to(self._device).T
        there = torch.from_numpy(left).to(self._device) @ held[1]
        torch.from_numpy(out).copy_(there)

    def _leave(self, why: str) -> None:
        with self._lock:
            if not self._gone and self._fall_back is not None:
                self._fall_back(why)
            self._gone = True
