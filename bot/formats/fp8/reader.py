"""FP8 checkpoints: e4m3 weights with a scale for each block, row, expert or tensor.

Layouts, by `quant_method`: fp8 and mxfp8 (DeepSeek, Qwen, MiniMax: `weight_scale_inv`, which multiplies all the same; AutoFP8:
`weight_scale`), fbgemm_fp8 (one for each output channel) and modelopt's FP8 kinds. Values are float32(code) · float32(scale) in
float32, as transformers' Fp8Dequantize computes them; blocks are indexed ⌊i/b⌋ at the ragged edge too, as DeepSeek's own
kernels do (transformers raises there, or takes a smaller block).
"""

from __future__ import annotations

from collections.abc import Mapping

from bot.formats.base import ReadRange, Rows, Unpacked, quantization_of
from bot.formats.base import small_keys as small_keys
from bot.formats.logical_tensor import logical, rectangle, refused, unpacked
from bot.records import Json, Refusal, Stored

NAME = "fp8"
METHODS = ("fp8", "mxfp8", "fbgemm_fp8")
MODELOPT = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO")
# DeepSeek-V4 has `scale`, Mistral Large 4 `qscale_weight`; transformers renames them to `weight_scale_inv`.
SCALES = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")
OTHER_FLOATS = ("F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")


def recognises(config: Json) -> bool:
    """Whether config.json says so."""
    quantization = quantization_of(config) or {}
    if quantization.get("quant_method") == "modelopt":
        return quantization.get("quant_algo") in MODELOPT
    return quantization.get("quant_method") in METHODS


def unpack(stored: Mapping[str, Stored], config: Json, small: Mapping[str, bytes]) -> Unpacked:
    """The model's own tensors: every weight of eight bits with its scales as one."""
    quantization = quantization_of(config) or {}
    made: list[Stored | Refusal] = []
    for tensor in stored.values():
        scale = scale_of(tensor.key, stored)
        if tensor.dtype in OTHER_FLOATS:
            made.append(refused(f"{tensor.key} is stored as {tensor.dtype}, which no FP8 layout here has.", tensor.key))
        elif tensor.dtype == "F8_E4M3" and scale is None:
            made.append(refused(f"{tensor.key} is stored in FP8 without a scale.", tensor.key))
        elif scale is not None and tensor.dtype in ("F8_E4M3", "I8"):
            made.append(_weight(tensor, scale, quantization))
    return unpacked(stored, made, activations=True)


def opener(tensor: Stored, read: ReadRange) -> Rows:
    """A logical tensor, ready to be read."""
    from bot.formats.scale_grid import open_scale_grid

    return open_scale_grid(tensor, read)


def scale_of(key: str, stored: Mapping[str, Stored]) -> Stored | None:
    """The scales that belong to a weight: beside it in its module, or named after it (stacks of experts)."""
    module, _, name = key.rpartition(".")
    keys = [f"{module}.{scale}" for scale in SCALES] if name == "weight" else [f"{key}_scale_inv", f"{key}_scale"]
    return next((stored[scale] for scale in keys if scale in stored), None)


def _weight(tensor: Stored, scale: Stored, quantization: Json) -> Stored | Refusal:
    kind, shape = "e4m3", tensor.shape
    if tensor.dtype == "I8":  # DeepSeek-V4's experts: two e2m1 numbers in a byte
        kind, shape = "e2m1", (*tensor.shape[:-1], tensor.shape[-1] * 2)
    if len(shape) not in (2, 3):
        return refused(f"{tensor.key} is stored in FP8 with {len(shape)} axes.", tensor.key, scale.key)
    experts, (rows, columns) = (shape[0] if len(shape) == 3 else 1), shape[-2:]
    block = _rectangle(tensor.key, shape, scale.shape, quantization)
    if block is None:
        reason = f"{scale.key} has the shape {list(scale.shape)}, which does not fit {tensor.key}, {list(shape)}."
        return refused(reason, tensor.key, scale.key)
    if scale.dtype not in ("F32", "BF16", "F16", "F8_E8M0", "U8"):
        return refused(f"{scale.key} is stored as {scale.dtype}, and no such scales are known.", tensor.key, scale.key)
    settings: dict[str, str | int | float | bool] = {
        "kind": kind, "experts": experts, "rows": rows, "columns": columns, "high": block[0], "wide": block[1],
    }  # fmt: skip
    return logical(tensor.key, shape, NAME, [("weight", tensor), ("scale", scale)], settings)


def _rectangle(key: str, shape: tuple[int, ...], scale: tuple[int, ...], quantization: Json) -> tuple[int, int] | None:
    rows, columns = shape[-2:]
    block = block_of(quantization)
    if len(shape) == 2:
        # modelopt keeps the axes inside the blocks: (rows, 1, columns, 1).
        return rectangle(rows, columns, scale[::2] if len(scale) == 4 and scale[1] == scale[3] == 1 else scale, block)
    if scale in ((shape[0],), (shape[0], 1, 1), (1,), ()):
        return rows, columns
    if len(scale) != 3 or scale[0] != shape[0]:
        return None
    if quantization.get("quant_method") == "fbgemm_fp8":
        # FbgemmFp8Llama4TextExperts: experts × in × out, a scale for each output; down_proj's stand in a column.
        return (rows, 1) if sorted(scale[1:]) == sorted((1, columns)) else None
    derived = rectangle(rows, columns, scale[1:], block)
    if derived and key.endswith("gate_up_proj") and derived[0] < rows and rows // 2 % derived[0]:
        return None  # each half may have blocks of its own at the seam: nothing says which
    return derived


def block_of(quantization: Json) -> tuple[int, int] | None:
    """The configured block, rows × columns."""
    size = quantization.get("weight_block_size")
    if size is None and quantization.get("quant_method") == "fp8":
        size = (128, 128)
    if isinstance(size, list | tuple) and len(size) == 2 and all(type(extent) is int and extent > 0 for extent in size):
        return size[0], size[1]
    return None
