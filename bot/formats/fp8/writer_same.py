"""`--quantize same` for FP8 bases: a merged weight back in the form that its own base weight has.

Same keys, same rectangles, same dtypes. A scale is max |w| ÷ 448 rounded to its dtype (up to a power of two for e8m0 and
bytes), a code e4m3(w ÷ scale): what compressed-tensors' block strategy gives for float32 scales. (transformers' Fp8Quantize
multiplies by a rounded 448 ÷ max instead, and differs from both in a few codes by one step.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bot.formats.base import Take, quantization_of
from bot.records import Json, Stored

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HELD = ("F32", "BF16", "F16", "F8_E8M0", "U8")


def writes(tensor: Stored) -> bool:
    """Whether a base's logical tensor has a form that can be written: e4m3 under a grid of scales, without zero points."""
    if tensor.packed is None:
        return False
    parts, settings = dict(tensor.packed.parts), dict(tensor.packed.settings)
    held = "scale" in parts and parts["scale"].dtype in HELD
    return settings.get("kind") == "e4m3" and held and "zero" not in parts


@dataclass(frozen=True, kw_only=True)
class SameFp8Writer:
    """The writer of one weight. `tensor`: the base's logical tensor, whose form it takes (see `writes`)."""

    tensor: Stored
    NAME: str = "same"

    def applies(self, key: str, shape: tuple[int, ...]) -> bool:
        return key == self.tensor.key and shape == self.tensor.shape and writes(self.tensor)

    def parts(self, key: str, shape: tuple[int, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
        """The base's codes and scales, by key, dtype and shape. (Scales of activations are copied, not written.)"""
        held = self._parts()
        return [(part.key, part.dtype, part.shape) for part in (held["weight"], held["scale"])]

    def quantise(self, key: str, rows: Take, shape: tuple[int, ...]) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
        """Codes and scales, strip by strip; a weight with one scale is read twice."""
        from bot.formats.fp8.encoding import encode, stored
        from bot.formats.scale_grid import scale_grid_of

        assert self.tensor.packed is not None
        grid, held = scale_grid_of(dict(self.tensor.packed.settings)), self._parts()
        scale = held["scale"]
        alone = max(1, (scale.stop - scale.start) // max(1, grid.experts * grid.down * grid.across))
        for strip in encode(rows, grid, lambda largest: _scales(largest, scale.dtype)):
            yield held["weight"].key, strip.first * grid.columns, strip.codes.reshape(-1)
            if strip.scales is not None:
                yield scale.key, strip.line * grid.across * alone, stored(strip.scales, scale.dtype).reshape(-1)

    def quantization_config(self, config: Json, left: Iterable[str] = ()) -> Json:
        """The base's own."""
        return dict(quantization_of(config) or {})

    def _parts(self) -> dict[str, Stored]:
        assert self.tensor.packed is not None
        return dict(self.tensor.packed.parts)


def _scales(largest: NDArray[Any], dtype: str) -> NDArray[Any]:
    import numpy as np

    from bot.formats.fp8.encoding import bfloat16, over_448, power_of_two

    exact = over_448(np.where(largest == 0, np.float32(448), largest))  # nothing but zeros: 1, as transformers has it
    if dtype == "BF16":
        return bfloat16(exact)
    if dtype in ("F8_E8M0", "U8"):
        return power_of_two(exact)
    if dtype == "F16":
        return np.maximum(exact.astype(np.float16).astype(np.float32), np.float32(2.0**-24))
    return exact
