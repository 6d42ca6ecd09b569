"""Does a merged layer still do what the unmerged one did? One random input says whether PEFT's merge can be trusted.

It cannot always: an OFT on a convolution rotates overlapping patches and adds them up, which no kernel does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ROWS = 2
AGREE = 1e-8  # relative; float64 gives 1e-15, and a real difference is far above


def probe_for(owner: Any) -> Tensor | None:
    """A random input for a layer, float64 (token numbers for an embedding); None for kinds that PEFT merely swaps."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(owner, nn.Embedding):
        return torch.randint(0, owner.num_embeddings, (ROWS, 5), generator=generator)
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        extents = [
            dilation * (kernel - 1) + 2 * stride + 1
            for dilation, kernel, stride in zip(owner.dilation, owner.kernel_size, owner.stride, strict=True)
        ]
        return torch.randn((1, owner.in_channels, *extents), generator=generator, dtype=torch.float64)
    if isinstance(owner, nn.Linear):
        return torch.randn((ROWS, owner.in_features), generator=generator, dtype=torch.float64)
    if type(owner).__name__ == "Conv1D":  # transformers' own: in × out
        return torch.randn((ROWS, owner.weight.shape[0]), generator=generator, dtype=torch.float64)
    return None


def same_output(first: Tensor, second: Tensor) -> bool:
    """Equal up to float64's own error."""
    if first.shape != second.shape:
        return False
    largest = float(first.abs().max())
    return float((first - second).abs().max()) <= AGREE * (largest or 1.0)
