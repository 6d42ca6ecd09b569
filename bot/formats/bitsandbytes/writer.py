"""`--quantize nf4`, `fp4`, `int8`, and `same` of a base that has them: bitsandbytes' forms, as transformers saves and loads them.

Numbers are quantised bit for bit as bitsandbytes does it on a CPU, from the exact merge rounded to float32 (nf4 with double
quantisation). The quant state names the model's dtype, in which others dequantise, and ends in spaces: how many digits the
mean takes is known only when its place is taken already.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

from bot.errors import Refused
from bot.formats.base import Take, dtype_of
from bot.formats.bitsandbytes import four_bit, int8
from bot.formats.bitsandbytes.four_bit import STATE
from bot.records import Json, Stored

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

SIZE, DOUBLE_SIZE = 64, 256  # numbers in a block; absmax in one
DIGITS = 24  # of a float64 at most
STRIP = 1 << 18  # numbers asked for at a time
Parts = list[tuple[str, str, tuple[int, ...]]]


class BitsAndBytesWriter:
    """What the writers share. `dtype`: the model's; `transposed`: weights come as in × out (Conv1D) and are stored as out × in."""

    def __init__(self, name: str, *, dtype: str = "bfloat16", transposed: bool = False) -> None:
        self.NAME, self.dtype, self.transposed = name, dtype, transposed

    def for_model(self, *, dtype: str, transposed: bool) -> Self:
        """The same form for a model of another dtype, or for a Conv1D's weights."""
        return type(self)(self.NAME, dtype=dtype, transposed=transposed)

    def applies(self, key: str, shape: tuple[int, ...]) -> bool:
        """Any matrix."""
        return len(shape) == 2 and min(shape) > 0 and key.endswith(".weight")

    def quantization_config(self, config: Json, left: Iterable[str] = ("lm_head",)) -> Json:
        """What config.json gets: BitsAndBytesConfig's fields. `left`: the modules that stay as they are: transformers looks
        for quantised weights in all others."""
        four = self.NAME != "int8"
        return {
            "_load_in_4bit": four,
            "_load_in_8bit": not four,
            "bnb_4bit_compute_dtype": dtype_of(config) if four else "float32",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": self.NAME if four else "fp4",
            "bnb_4bit_use_double_quant": self.NAME == "nf4",
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": sorted(left),
            "llm_int8_threshold": 6.0,
            "load_in_4bit": four,
            "load_in_8bit": not four,
            "quant_method": "bitsandbytes",
        }

    def _seen(self, rows: Take, shape: tuple[int, ...]) -> tuple[Take, int, int]:
        """(rows, out, in) of the weight as it is stored. A transposed one is held whole, in float32: such models are small."""
        if not self.transposed:
            return rows, shape[0], shape[1]
        import numpy as np

        into, out = shape
        whole = np.empty((out, into), np.float32)
        step = max(1, STRIP // out)
        for first in range(0, into, step):
            count = min(step, into - first)
            whole[:, first : first + count] = rows(first, count).T
        return lambda first, count: whole[first : first + count], out, into


class FourBitWriter(BitsAndBytesWriter):
    """nf4 and fp4. `size`: numbers in a block; `double`: whether their absmax are quantised too."""

    def __init__(
        self,
        name: str,
        *,
        dtype: str = "bfloat16",
        transposed: bool = False,
        size: int = SIZE,
        double: bool | None = None,
    ) -> None:
        super().__init__(name, dtype=dtype, transposed=transposed)
        self._size, self._double = size, name == "nf4" if double is None else double

    def parts(self, key: str, shape: tuple[int, ...]) -> Parts:
        """float32 first and a whole number of eight bytes in all, so that whatever lies behind them is aligned too."""
        count = math.prod(shape)
        blocks = math.ceil(count / self._size)
        levels: Parts = [(f"{key}.quant_map", "F32", (16,))]
        if self._double:
            outer = (math.ceil(blocks / DOUBLE_SIZE),)
            statistics: Parts = [(f"{key}.nested_absmax", "F32", outer), (f"{key}.nested_quant_map", "F32", (256,))]
            parts = [*levels, *statistics, (key, "U8", (math.ceil(count / 2), 1)), (f"{key}.absmax", "U8", (blocks,))]
        else:
            parts = [*levels, (f"{key}.absmax", "F32", (blocks,)), (key, "U8", (math.ceil(count / 2), 1))]
        taken = sum(math.prod(size) * (4 if dtype == "F32" else 1) for _, dtype, size in parts)
        length = len(self._state(shape, 0.0)) + DIGITS
        return [*parts, (f"{key}{STATE}{self.NAME}", "U8", (length + -(taken + length) % 8,))]

    def quantise(self, key: str, rows: Take, shape: tuple[int, ...]) -> Iterator[tuple[str, int, Array]]:
        """The codes strip by strip, and all that belongs to the blocks once they are known; every row is asked for once."""
        import numpy as np

        from bot.formats.bitsandbytes import double_quant
        from bot.formats.bitsandbytes.blockwise import KINDS

        kind = KINDS[self.NAME]
        every: list[Array] = []
        for at, codes, absmax in self._strips(rows, shape):
            if not bool(np.isfinite(absmax).all()):
                raise Refused(f"{key} holds a NaN or Inf, which {self.NAME} cannot hold.", remedy="Take another base.")
            every.append(absmax)
            yield key, at, codes
        absmax = np.concatenate(every)
        yield f"{key}.quant_map", 0, kind.levels.view(np.uint8)
        offset = double_quant.mean(absmax)
        if self._double:
            absmax, outer = double_quant.compress(absmax, offset)
            yield f"{key}.nested_absmax", 0, outer.view(np.uint8)
            yield f"{key}.nested_quant_map", 0, double_quant.DYNAMIC.view(np.uint8)
        yield f"{key}.absmax", 0, absmax.view(np.uint8)
        name, _, (length,) = self.parts(key, shape)[-1]
        yield name, 0, np.frombuffer(self._state(shape, float(offset)).ljust(length), np.uint8)

    def _strips(self, rows: Take, shape: tuple[int, ...]) -> Iterator[tuple[int, Array, Array]]:
        """(first byte, codes, absmax); every strip but the last is a whole number of blocks."""
        from bot.formats.bitsandbytes.blockwise import CHUNK, KINDS, largest, nearest_level_indices, pack

        take, height, columns = self._seen(rows, shape)
        size = self._size
        unit = size // math.gcd(columns, size)
        step = max(1, STRIP // columns // unit) * unit
        for first in range(0, height, step):
            numbers = take(first, min(step, height - first)).reshape(-1)
            for at in range(0, len(numbers), CHUNK):
                some = numbers[at : at + CHUNK]
                absmax = largest(some, size)
                codes = pack(nearest_level_indices(some, absmax, size, KINDS[self.NAME]), KINDS[self.NAME])
                yield (first * columns + at) // 2, codes, absmax

    def _state(self, shape: tuple[int, ...], offset: float) -> bytes:
        """bitsandbytes' quant state, as QuantState.as_dict(packed=True) writes it."""
        size = list(reversed(shape)) if self.transposed else list(shape)
        quant_state: Json = {"quant_type": self.NAME, "blocksize": self._size, "dtype": self.dtype, "shape": size}
        if self._double:
            quant_state |= {"nested_blocksize": DOUBLE_SIZE, "nested_dtype": "float32", "nested_offset": offset}
        return json.dumps(quant_state).encode()


class Int8Writer(BitsAndBytesWriter):
    """int8, one scale for each output."""

    def parts(self, key: str, shape: tuple[int, ...]) -> Parts:
        """The scales, the codes, and the byte that says that they stand row by row."""
        out, into = (shape[1], shape[0]) if self.transposed else shape
        module = key.removesuffix(".weight")
        return [(f"{module}.SCB", "F32", (out,)), (key, "I8", (out, into)), (f"{module}.weight_format", "U8", ())]

    def quantise(self, key: str, rows: Take, shape: tuple[int, ...]) -> Iterator[tuple[str, int, Array]]:
        """Codes and scales, strip by strip."""
        import numpy as np

        from bot.formats.bitsandbytes.int8_rows import quantise

        take, height, columns = self._seen(rows, shape)
        module = key.removesuffix(".weight")
        step = max(1, STRIP // columns)
        for first in range(0, height, step):
            codes, scale = quantise(take(first, min(step, height - first)))
            if not bool(np.isfinite(scale).all()):
                reason = f"{key} holds a number beyond float16's, by way of which bitsandbytes makes int8."
                raise Refused(reason, remedy="Choose --quantize nf4 or fp8.")
            yield key, first * columns, codes.view(np.uint8).reshape(-1)
            yield f"{module}.SCB", first * 4, scale.view(np.uint8)
        yield f"{module}.weight_format", 0, np.zeros(1, np.uint8)


def writer_same(tensor: Stored, dtype: str) -> FourBitWriter | Int8Writer | None:
    """The writer of a merged weight in the form that its base weight (a logical tensor) has: the same blocks, double quantisation or
    not. `dtype`: the model's. None for what no bitsandbytes stores today (blocks of bytes under another dtype, say)."""
    assert tensor.packed is not None
    settings, parts = dict(tensor.packed.settings), dict(tensor.packed.parts)
    transposed = bool(settings.get("transposed"))
    if tensor.packed.format == int8.NAME:
        fits = parts["scale"].dtype == "F32"
        return Int8Writer("int8", dtype=dtype, transposed=transposed) if fits else None
    if tensor.packed.format != four_bit.NAME:
        return None
    nested, size = settings["nested_blocksize"], int(settings["blocksize"])
    outer = parts["nested_absmax" if nested else "absmax"]
    if parts["weight"].dtype != "U8" or nested not in (0, DOUBLE_SIZE) or outer.dtype != "F32":
        return None
    kind = str(settings["quant_type"])
    return FourBitWriter(kind, dtype=dtype, transposed=transposed, size=size, double=bool(nested))


NF4, FP4, INT8 = FourBitWriter("nf4"), FourBitWriter("fp4"), Int8Writer("int8")
