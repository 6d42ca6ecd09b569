"""Where the numbers of a tensor come from: a stand-in that transformers' own converters stack, concatenate, split and transpose.

A `SymbolicTensor` has a shape and no numbers. It says which boxes of it are which boxes of which stored tensors, and keeps that up
while torch functions are called on it (`__torch_function__`). What it cannot follow raises NotFollowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

Span = tuple[int, int]
Source = tuple[int | None, int, int, int]  # dimension of the box, or None; start; stop; step


class NotFollowed(Exception):
    """A converter did something to a tensor that is no rearrangement of boxes."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A box of a tensor, and the box of the stored tensor `key` that it is.

    `box`: one span per dimension. `source`: one (dimension of the box, or None; start; stop; step) per dimension of the
    stored tensor, in stored order; None where the stored dimension is cut down to one index that the box has no dimension
    for. From its start on, every step-th index belongs to the box.
    """

    key: str
    box: tuple[Span, ...]
    source: tuple[Source, ...]

    def window(self, dim: int, low: int, high: int, step: int = 1) -> Block | None:
        """What is left of it of every step-th index from `low` to `high` along a dimension, which are counted anew."""
        start, stop = self.box[dim]
        skipped = max(0, -(-(start - low) // step))
        wanted = range(low + skipped * step, min(stop, high), step)
        if not wanted:
            return None
        box = tuple((skipped, skipped + len(wanted)) if at == dim else span for at, span in enumerate(self.box))
        source = tuple(
            (at, begin + (wanted[0] - start) * every, begin + (wanted[-1] - start) * every + 1, every * step)
            if at == dim
            else (at, begin, end, every)
            for at, begin, end, every in self.source
        )
        return replace(self, box=box, source=source)

    def moved(self, dim: int, by: int) -> Block:
        """The same, further along a dimension."""
        return replace(self, box=tuple((a + by, b + by) if at == dim else (a, b) for at, (a, b) in enumerate(self.box)))

    def renumbered(self, order: Sequence[int | None], box: tuple[Span, ...]) -> Block:
        """The same with other dimensions: `order[old]` is the new number of an old dimension, None where it goes."""
        source = tuple((None if at is None else order[at], a, b, every) for at, a, b, every in self.source)
        return replace(self, box=box, source=source)


class SymbolicTensor:
    """See above. Only what converters use: cat, stack, chunk, split, transpose, contiguous, squeeze, shape, size."""

    def __init__(self, shape: Sequence[int], blocks: Sequence[Block]) -> None:
        self.shape = tuple(shape)
        self.blocks = tuple(blocks)

    @classmethod
    def whole(cls, key: str, shape: Sequence[int]) -> SymbolicTensor:
        """The stored tensor itself."""
        source = tuple((at, 0, extent, 1) for at, extent in enumerate(shape))
        return cls(shape, [Block(key=key, box=tuple((0, extent) for extent in shape), source=source)])

    @property
    def plain(self) -> str | None:
        """The stored tensor that this is, whole and as it is; else None."""
        if len(self.blocks) == 1 and self.blocks[0] == SymbolicTensor.whole(self.blocks[0].key, self.shape).blocks[0]:
            return self.blocks[0].key
        return None

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return len(self.shape)

    def contiguous(self) -> SymbolicTensor:
        return self

    def window(self, dim: int, low: int, high: int, step: int = 1) -> SymbolicTensor:
        """A range of one dimension."""
        shape = [len(range(low, high, step)) if at == dim else extent for at, extent in enumerate(self.shape)]
        return SymbolicTensor(shape, [left for block in self.blocks if (left := block.window(dim, low, high, step))])

    def squeeze(self, dim: int) -> SymbolicTensor:
        if self.shape[dim] != 1:
            return self
        order = [None if at == dim else at - (at > dim) for at in range(len(self.shape))]
        blocks = [block.renumbered(order, block.box[:dim] + block.box[dim + 1 :]) for block in self.blocks]
        return SymbolicTensor(self.shape[:dim] + self.shape[dim + 1 :], blocks)

    def unsqueeze(self, dim: int) -> SymbolicTensor:
        order = [at + (at >= dim) for at in range(len(self.shape))]
        blocks = [block.renumbered(order, (*block.box[:dim], (0, 1), *block.box[dim:])) for block in self.blocks]
        return SymbolicTensor((*self.shape[:dim], 1, *self.shape[dim:]), blocks)

    def permute(self, order: Sequence[int]) -> SymbolicTensor:
        """Dimension `i` of the result is dimension `order[i]` of this."""
        new = [list(order).index(at) for at in range(len(order))]
        blocks = [block.renumbered(new, tuple(block.box[at] for at in order)) for block in self.blocks]
        return SymbolicTensor([self.shape[at] for at in order], blocks)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = _functions().get(func)
        if known is None:
            raise NotFollowed(getattr(func, "__name__", str(func)))
        return known(*args, **(kwargs or {}))


def cat(tensors: Sequence[SymbolicTensor], dim: int = 0) -> SymbolicTensor:
    """One after the other along a dimension."""
    blocks: list[Block] = []
    length = 0
    for tensor in tensors:
        blocks += [block.moved(dim, length) for block in tensor.blocks]
        length += tensor.shape[dim]
    shape = [length if at == dim else extent for at, extent in enumerate(tensors[0].shape)]
    return SymbolicTensor(shape, blocks)


def stack(tensors: Sequence[SymbolicTensor], dim: int = 0) -> SymbolicTensor:
    """Side by side along a new dimension."""
    return cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


def split(tensor: SymbolicTensor, sizes: int | Sequence[int], dim: int = 0) -> tuple[SymbolicTensor, ...]:
    """Ranges of the sizes given, or of one size."""
    extent = tensor.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, extent - low) for low in range(0, extent, sizes)]
    ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
    return tuple(tensor.window(dim, end - size, end) for size, end in zip(sizes, ends, strict=True))


def chunk(tensor: SymbolicTensor, chunks: int, dim: int = 0) -> tuple[SymbolicTensor, ...]:
    """So many equal ranges; the last may be shorter, as in torch."""
    return split(tensor, -(-tensor.shape[dim] // chunks), dim)


def transpose(tensor: SymbolicTensor, dim0: int, dim1: int) -> SymbolicTensor:
    """Two dimensions exchanged."""
    order = list(range(len(tensor.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return tensor.permute(order)


@cache
def _functions() -> dict[Any, Callable[..., Any]]:
    import torch  # by those who run a converter on stand-ins

    return {torch.cat: cat, torch.stack: stack, torch.chunk: chunk, torch.split: split, torch.transpose: transpose}


def compose(outer: SymbolicTensor, inner: Callable[[str], SymbolicTensor | None]) -> SymbolicTensor | None:
    """Each block of `outer` is of a tensor that `inner` traces further: the same boxes, of what those are made of."""
    blocks: list[Block] = []
    for outer_block in outer.blocks:
        tensor = inner(outer_block.key)
        if tensor is None:
            return None
        for dim, (_, low, high, step) in enumerate(outer_block.source):
            tensor = tensor.window(dim, low, high, step)
        # The dimensions of `found` are those of the tensor in between; bring them into the order of the outer box.
        order: list[int | None] = [at for at, *_ in outer_block.source]
        for block in tensor.blocks:
            box: list[Span] = [(0, 1)] * len(outer.shape)
            for dim, at in enumerate(order):
                if at is not None:
                    start, (a, b) = outer_block.box[at][0], block.box[dim]
                    box[at] = (start + a, start + b)
            for at, span in enumerate(outer_block.box):
                if at not in order:
                    box[at] = span
            blocks.append(block.renumbered(order, tuple(box)))
    return SymbolicTensor(outer.shape, blocks)
