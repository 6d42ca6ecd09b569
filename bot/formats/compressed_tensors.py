"""compressed-tensors checkpoints: integers of 1 to 8 bits, packed or one to a byte, and e4m3.

(code − zero) · scale in float32: the package's `_dequantize` with its scales widened to float32. (With scales of 16 bits the
package itself multiplies in those; for codes of up to 8 bits that rounds the same product once, to 16 bits.)
Scales for the tensor, each channel (row), group (of columns) or block; which, the `config_groups` say.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping

from bot.formats.base import ReadRange, Rows, Unpacked, quantization_of
from bot.formats.logical_tensor import logical, refused, unpacked
from bot.records import Json, Refusal, Stored
from bot.untrusted.patterns import BadPattern, first

NAME = "compressed-tensors"
PACKED = "pack-quantized"
PLAIN = ("naive-quantized", "int-quantized", "float-quantized")
FLOATS = ("F32", "BF16", "F16")


def recognises(config: Json) -> bool:
    """Whether config.json says so."""
    return (quantization_of(config) or {}).get("quant_method") == NAME


def small_keys(keys: Iterable[str]) -> list[str]:
    """The shapes of packed weights: 16 bytes each."""
    return [key for key in keys if key.endswith(".weight_shape")]


def unpack(stored: Mapping[str, Stored], config: Json, small: Mapping[str, bytes]) -> Unpacked:
    """The model's own tensors: weights with their scales, zero points and shapes as one."""
    quantization = quantization_of(config) or {}
    whole = _unreadable(quantization)
    if whole is not None:
        return Unpacked(tensors=dict(stored), refusals=(whole,))
    made: list[Stored | Refusal] = []
    for key in stored:
        module, _, name = key.rpartition(".")
        if name == "weight_packed" or (name == "weight" and f"{module}.weight_scale" in stored):
            try:
                made.append(_weight(module, stored, quantization, small))
            except (TypeError, ValueError, KeyError, AttributeError):  # a config that somebody wrote by hand
                made.append(refused(f"The config group of {module} is malformed.", key))
    return unpacked(stored, made, activations=True)


def opener(tensor: Stored, read: ReadRange) -> Rows:
    """A logical tensor, ready to be read."""
    from bot.formats.scale_grid import open_scale_grid, read_numbers, read_packed_columns

    assert tensor.packed is not None
    zero = dict(tensor.packed.parts).get("zero")
    if zero is None:
        return open_scale_grid(tensor, read)
    settings = dict(tensor.packed.settings)
    if zero.dtype == "I32":
        return open_scale_grid(
            tensor, read, read_packed_columns(zero, read, int(settings["bits"]), int(settings["rows"]))
        )
    return open_scale_grid(tensor, read, read_numbers(zero, read))


def group_of(module: str, quantization: Json) -> Json | None:
    """The config group of a module, as the package matches names: exactly, by a `re:` pattern, then by class.

    A checkpoint does not say of what class a module is, but only classes that a group names are packed: of several, the
    one that says Embedding takes the modules with `embed` in their name.
    """
    groups = [group for group in (quantization.get("config_groups") or {}).values() if isinstance(group, dict)]
    for matches in (_exactly, _by_pattern, _by_class):
        for group in groups:
            if any(matches(module, str(target)) for target in group.get("targets") or []):
                return group
    return None


def _exactly(module: str, target: str) -> bool:
    return module == target


def _by_pattern(module: str, target: str) -> bool:
    try:
        return target.startswith("re:") and first((target[3:],), module) is not None
    except BadPattern:
        return False


def _by_class(module: str, target: str) -> bool:
    return re.fullmatch(r"\w+", target) is not None and (target == "Embedding") == (
        "embed" in module.rpartition(".")[2]
    )


def is_rotated(quantization: Json) -> bool:
    """Whether the model rotates its weights, plain ones too, so that no adapter of the original fits them."""
    return bool((quantization.get("transform_config") or {}).get("config_groups"))


def _unreadable(quantization: Json) -> Refusal | None:
    """What makes the whole checkpoint unreadable."""
    groups = quantization.get("config_groups") or {}
    formats = {group.get("format") for group in (quantization, *groups.values()) if isinstance(group, dict)}
    unknown = sorted(str(name) for name in formats - {PACKED, *PLAIN, "dense", "mixed-precision", None})
    sparsity = (quantization.get("sparsity_config") or {}).get("format", "dense")
    if unknown or sparsity != "dense":
        return refused(f"The base is stored as {NAME} {unknown[0] if unknown else sparsity}, which is not read.")
    if is_rotated(quantization):
        return refused(
            f"The base's weights are rotated ({NAME} transform_config), so that an adapter does not fit them."
        )
    preset = next((name for name, group in groups.items() if not isinstance(group, dict)), None)
    return refused(f"The base names the preset {preset} instead of how it is stored.") if preset else None


def _weight(
    module: str, stored: Mapping[str, Stored], quantization: Json, small: Mapping[str, bytes]
) -> Stored | Refusal:
    group = group_of(module, quantization) or {}
    how = group.get("weights") or {}
    packed = stored.get(f"{module}.weight_packed")
    main, scale = packed or stored[f"{module}.weight"], stored.get(f"{module}.weight_scale")
    if not how or scale is None or scale.dtype not in FLOATS or f"{module}.weight_g_idx" in stored:
        lacks = "no scales of a known type" if how else "no config group"
        what = "reordered columns (g_idx)" if f"{module}.weight_g_idx" in stored else lacks
        return refused(f"{module} is packed with {what}.", main.key)
    kind = _kind(main, how, group.get("format") or quantization.get("format"))
    shape = _shape(module, main, scale, how, small)
    block = _block(shape, scale.shape, how) if shape else None
    zero = stored.get(f"{module}.weight_zero_point")
    if kind is None or shape is None or block is None or not _zero_fits(zero, scale, kind, shape, how):
        words = {name: how.get(name) for name in ("num_bits", "type", "strategy", "group_size", "symmetric")}
        return refused(f"{module} is not stored as its config group says: {words}.", main.key, scale.key)
    settings: dict[str, str | int | float | bool] = {
        "kind": kind, "experts": 1, "rows": shape[0], "columns": shape[1], "high": block[0], "wide": block[1],
        "bits": int(how.get("num_bits", 8)),
    }  # fmt: skip
    parts = [("weight", main), ("scale", scale)] + ([("zero", zero)] if zero else [])
    rest = stored.get(f"{module}.weight_shape")
    return logical(f"{module}.weight", shape, NAME, parts + ([("shape", rest)] if rest else []), settings)


def _kind(main: Stored, how: Json, form: str | None) -> str | None:
    bits = how.get("num_bits", 8)
    if main.key.endswith("_packed"):
        right = form == PACKED and main.dtype == "I32" and how.get("type", "int") == "int" and bits in range(1, 9)
        return f"pack{bits}" if right else None
    if form not in PLAIN:
        return None
    if how.get("type", "int") == "int":
        return "int8" if main.dtype == "I8" and bits <= 8 else None
    return "e4m3" if main.dtype == "F8_E4M3" and bits == 8 else None


def _shape(module: str, main: Stored, scale: Stored, how: Json, small: Mapping[str, bytes]) -> tuple[int, int] | None:
    """Rows and columns: of packed weights from `weight_shape`, or where that is missing, from their groups."""
    if len(main.shape) != 2:
        return None
    if not main.key.endswith("_packed"):
        return main.shape[0], main.shape[1]
    content = small.get(f"{module}.weight_shape")
    if content is not None:
        if len(content) not in (8, 16):
            return None
        rows, columns = struct.unpack("<2q" if len(content) == 16 else "<2i", content)
    elif strategy_of(how) == "group" and len(scale.shape) == 2:
        rows, columns = main.shape[0], scale.shape[1] * int(how["group_size"])
    else:
        return None
    fits = rows == main.shape[0] and math.ceil(columns * int(how.get("num_bits", 8)) / 32) == main.shape[1]
    return (rows, columns) if fits else None


def strategy_of(how: Json) -> str:
    """The weights' strategy, inferred as the package does where it is not named."""
    size = how.get("group_size")
    named = how.get("strategy")
    return str(named).lower() if named else "tensor" if size is None else "group" if size > 0 else "channel"


def _block(shape: tuple[int, int], scale: tuple[int, ...], how: Json) -> tuple[int, int] | None:
    """How high and wide one scale's rectangle is; None where the scales' shape is not that of their strategy."""
    rows, columns = shape
    match strategy_of(how):
        case "tensor":
            return (rows, columns) if math.prod(scale) == 1 else None
        case "channel":
            return (1, columns) if scale == (rows, 1) else None
        case "group":
            size = int(how["group_size"])
            return (1, size) if columns % size == 0 and scale == (rows, columns // size) else None
        case "block":
            block = how.get("block_structure")
            high, wide = (int(n) for n in (block.split("x") if isinstance(block, str) else block or (0, 0)))
            fits = high > 0 < wide and scale == (math.ceil(rows / high), math.ceil(columns / wide))
            return (high, wide) if fits else None
    return None


def _zero_fits(zero: Stored | None, scale: Stored, kind: str, shape: tuple[int, int], how: Json) -> bool:
    """Whether the zero points are there where they must be, stored as the package stores them."""
    asymmetric = not how.get("symmetric", True)
    if kind.startswith("pack") and asymmetric and strategy_of(how) in ("group", "channel"):
        if zero is None:
            return False
        words = math.ceil(shape[0] * int(how.get("num_bits", 8)) / 32)
        return zero.dtype == "I32" and zero.shape == (words, scale.shape[-1])
    if zero is None:
        return True
    known = ("I8", "F8_E4M3", *FLOATS)
    return zero.dtype in known and math.prod(zero.shape) in (1, math.prod(scale.shape))
