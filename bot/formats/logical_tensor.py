"""What the layouts share: how a packed weight becomes one logical tensor among the others. Headers only, no numpy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from bot.formats.base import Unpacked
from bot.records import Packed, Refusal, Stored

Setting = str | int | float | bool
REMEDY = "Merge into the 16-bit model that it was made from: --base-weights original, or name it with --base."

# What quantised checkpoints keep about activations and caches: a merge has no use for it.
ACTIVATIONS = ("input_scale", "activation_scale", "input_scale_ub", "output_scale", "input_global_scale")
CACHES = ("k_scale", "v_scale", "q_scale", "prob_output_scale", "k_zero_point", "v_zero_point", "input_zero_point")


def logical(
    key: str, shape: tuple[int, ...], name: str, parts: Iterable[tuple[str, Stored]], settings: Mapping[str, Setting]
) -> Stored:
    """The logical tensor; the first of its parts is the large one."""
    held = tuple(parts)
    main = held[0][1]
    packed = Packed(format=name, parts=held, settings=tuple(sorted(settings.items())))
    return Stored(key=key, file=main.file, dtype="F32", shape=shape, start=0, stop=0, role=main.role, packed=packed)


def unpacked(stored: Mapping[str, Stored], made: Iterable[Stored | Refusal], *, activations: bool = False) -> Unpacked:
    """The checkpoint with the weights that were made of its tensors, and what forbids others. `activations`: the scales of
    activations and caches go with them."""
    every = tuple(made)
    weights = [tensor for tensor in every if isinstance(tensor, Stored)]
    weights = with_activations(weights, stored) if activations else weights
    refusals = tuple(refusal for refusal in every if isinstance(refusal, Refusal))
    return Unpacked(tensors=with_logical_tensors(stored, weights), refusals=refusals)


def with_logical_tensors(stored: Mapping[str, Stored], weights: Iterable[Stored]) -> dict[str, Stored]:
    """All tensors in file order: a logical one where its main part stands, and none of its parts."""
    by_main: dict[str, Stored] = {}
    used: set[str] = set()
    for tensor in weights:
        assert tensor.packed is not None
        by_main[tensor.packed.parts[0][1].key] = tensor
        used |= {part.key for _, part in tensor.packed.parts}
    tensors = [by_main.get(key, None if key in used else plain) for key, plain in stored.items()]
    return {tensor.key: tensor for tensor in tensors if tensor is not None}


def with_activations(weights: list[Stored], stored: Mapping[str, Stored]) -> list[Stored]:
    """The logical tensors, each with the scales of activations and caches that its module keeps, so that none is lost.

    A cache's scale that stands on the attention itself goes with the first packed weight below it.
    """
    used = {part.key for tensor in weights if tensor.packed for _, part in tensor.packed.parts}
    owners: dict[str, int] = {}
    for at, tensor in enumerate(weights):
        names = tensor.key.split(".")
        for depth in range(len(names), 0, -1):
            owners.setdefault(".".join(names[:depth]), at)
    extras: dict[int, list[tuple[str, Stored]]] = {}
    for key, tensor in stored.items():
        module, _, name = key.rpartition(".")
        if key in used or not name.endswith(ACTIVATIONS + CACHES):
            continue
        owner = next((owners[path] for path in (f"{module}.weight", module) if path in owners), None)
        if owner is not None:
            extras.setdefault(owner, []).append((name, tensor))
    for at, more in extras.items():
        packed = weights[at].packed
        assert packed is not None
        weights[at] = replace(weights[at], packed=replace(packed, parts=(*packed.parts, *more)))
    return weights


def rectangle(rows: int, columns: int, scale: tuple[int, ...], block: tuple[int, int] | None) -> tuple[int, int] | None:
    """How high and wide the rectangle of one scale is, by the shape of a matrix's scales; None where they do not fit.

    `block` as configured decides where it fits; a grid of another size must divide the matrix (transformers'
    Fp8Dequantize derives it so).
    """
    if math.prod(scale) == 1:
        return max(1, rows), max(1, columns)
    if scale == (rows,):
        return 1, columns
    if len(scale) != 2:
        return None
    if block is not None and scale == (math.ceil(rows / block[0]), math.ceil(columns / block[1])):
        return block
    if 0 in scale or rows % scale[0] or columns % scale[1]:
        return None
    return rows // scale[0], columns // scale[1]


def refused(reason: str, *keys: str) -> Refusal:
    """A packed weight that cannot be read."""
    return Refusal(code="quantised-base", reason=reason, remedy=REMEDY, keys=keys)
