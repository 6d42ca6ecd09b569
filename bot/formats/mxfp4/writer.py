"""`--quantize same` for gpt-oss's experts: a merged weight back in MXFP4, from the exact merge (see `encoding` for the rule).

A group of 32 numbers keeps its stored bytes, whatever they are, where the merge leaves it alone, and where it would be stored as the
same numbers: the bytes could be others (codes twice as large under half the scale, −0 for 0), and only what has changed is to look
changed. So the last two scale bytes, which reach infinity, stay as well; a group that changes never gets those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bot.errors import Refused
from bot.formats.base import ReadRange, Take, quantization_of
from bot.formats.mxfp4.reader import GROUP
from bot.records import Json, Stored

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

STRIP = 1 << 20  # elements of a weight that are asked for at a time, or one line of groups where that is more


@dataclass(frozen=True, kw_only=True)
class SameMxfp4Writer:
    """The writer of one stack of experts. `tensor`: the base's logical tensor; `read`: its bytes, None where nothing is written."""

    tensor: Stored
    read: ReadRange | None = None
    NAME: str = "same"

    def applies(self, key: str, shape: tuple[int, ...]) -> bool:
        return key == self.tensor.key and shape == self.tensor.shape

    def parts(self, key: str, shape: tuple[int, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
        """The base's blocks and scales, by key, dtype and shape."""
        return [(part.key, part.dtype, part.shape) for part in self._parts()]

    def quantise(self, key: str, rows: Take, shape: tuple[int, ...]) -> Iterator[tuple[str, int, Array]]:
        """Blocks and scales, expert by expert: one of them is held, packed, and a strip of it as numbers."""
        blocks, scales = self._parts()
        experts, deep, out = shape
        groups = deep // GROUP
        step = max(1, STRIP // max(1, out * GROUP))
        for expert in range(experts):
            raw, exponents = self._expert(expert)
            for low in range(0, groups, step):
                high = min(groups, low + step)
                merged = rows(expert * deep + low * GROUP, (high - low) * GROUP)
                try:
                    _write_over(raw[:, low:high], exponents[:, low:high], merged)
                except ValueError as error:
                    what = f"{key} holds a NaN or Inf, which MXFP4 cannot hold."
                    raise Refused(what, remedy="Take another base.") from error
            yield blocks.key, expert * raw.size, raw.reshape(-1)
            yield scales.key, expert * exponents.size, exponents.reshape(-1)

    def quantization_config(self, config: Json, left: Iterable[str] = ()) -> Json:
        """The base's own."""
        return dict(quantization_of(config) or {})

    def _parts(self) -> tuple[Stored, Stored]:
        assert self.tensor.packed is not None
        held = dict(self.tensor.packed.parts)
        return held["blocks"], held["scales"]

    def _expert(self, expert: int) -> tuple[Array, Array]:
        """An expert as the base stores it: out × groups × 16, and out × groups."""
        blocks, scales = self._parts()
        _, out, groups, _ = blocks.shape
        size = out * groups
        assert self.read is not None
        raw = self.read(blocks, expert * size * GROUP // 2, size * GROUP // 2)
        return raw.reshape(out, groups, GROUP // 2), self.read(scales, expert * size, size).reshape(out, groups)


def _write_over(blocks: Array, scales: Array, merged: Array) -> None:
    """Put what the merge changes over an expert's bytes. `merged`: rows of some groups, (groups · 32) × out, in float32."""
    import numpy as np

    from bot.formats.mxfp4.encoding import encode
    from bot.formats.mxfp4.rows import decode

    values, before = np.ascontiguousarray(merged.T).reshape(*scales.shape, GROUP), decode(blocks, scales)
    touched = np.nonzero((values != before).any(axis=-1))
    codes, exponents = encode(values[touched])
    changed = (decode(codes, exponents) != before[touched]).any(axis=-1)
    where = tuple(axis[changed] for axis in touched)
    blocks[where], scales[where] = codes[changed], exponents[changed]
