"""`--quantize fp8`: e4m3 weights with a scale for each output channel, activations quantised when they come (W8A8).

The layout is compressed-tensors' float-quantized, which vLLM and transformers read: `weight` F8_E4M3, `weight_scale` out × 1.
Scales are max |w| ÷ 448, rounded to bfloat16 before the weights are divided by them, as compressed-tensors does with
`scale_dtype` bfloat16; one below 2⁻¹⁷ (a row of weights below 0.0034) is rounded up to a multiple of 2⁻²⁴ instead, which float16
has too. They are stored as float32. transformers takes them into the model's dtype, or multiplies in the stored one
(`dequantize=True`): only so is every weight the same both ways, in each of the three dtypes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from bot.checkpoint.families import family_of
from bot.formats.base import Take
from bot.records import Json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "fp8"
EXPERTS = r"re:.*\.experts\..*"
EMPTY = 2.0**-7  # the scale of a row of zeros: bfloat16's eps, as in compressed-tensors


def applies(key: str, shape: tuple[int, ...]) -> bool:
    """Linear layers' matrices, of any size."""
    return len(shape) == 2 and min(shape) > 0 and key.endswith(".weight")


def parts(key: str, shape: tuple[int, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
    """The codes, and the scales beside them."""
    return [(key, "F8_E4M3", shape), (f"{key}_scale", "F32", (shape[0], 1))]


def quantise(key: str, rows: Take, shape: tuple[int, ...]) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
    """Codes and scales, strip by strip."""
    from bot.formats.fp8.encoding import encode, stored
    from bot.formats.scale_grid import ScaleGrid

    grid = ScaleGrid(rows=shape[0], columns=shape[1], high=1, wide=shape[1])
    for strip in encode(rows, grid, _scales):
        yield key, strip.first * shape[1], strip.codes.reshape(-1)
        assert strip.scales is not None
        yield f"{key}_scale", strip.line * 4, stored(strip.scales, "F32").reshape(-1)


def quantization_config(config: Json, left: Iterable[str] = ("lm_head",)) -> Json:
    """What config.json gets. `left`: the Linear modules that stay as they are: a reader expects scales for all others.

    Stacked experts stay as they are too. transformers has no Linear layers there, but vLLM looks for those of every expert.
    """
    args = {"num_bits": 8, "type": "float", "symmetric": True, "group_size": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "format": "float-quantized",
                "weights": {**args, "strategy": "channel", "dynamic": False},
                "input_activations": {**args, "strategy": "token", "dynamic": True},
                "output_activations": None,
            }
        },
        "ignore": sorted({*left, *([EXPERTS] if _stacks_experts(config) else [])}),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _stacks_experts(config: Json) -> bool:
    """Whether the architecture keeps its experts in stacks, which are never quantised here."""
    return any(
        "experts" in name or name.endswith(("input_linear", "output_linear")) for name in family_of(config).experts
    )


def _scales(largest: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    from bot.formats.fp8.encoding import bfloat16, over_448

    exact = over_448(largest)
    near = bfloat16(exact)
    steps = np.ceil(exact * np.float32(2.0**24)) * np.float32(2.0**-24)
    scales = np.where(near < np.float32(2.0**-17), steps, near)
    return np.where(largest == 0, np.float32(EMPTY), scales).astype(np.float32)
