"""One LoRA pair and one placement make patches: which rows and columns of A and B belong to which rectangle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from bot.adapters.expert_sides import order_of
from bot.adapters.lora import LoraPair
from bot.checkpoint.locations import Placement, Rectangle
from bot.records import Factor, Patch, Stored, Term

WEIGHTS = ("BF16", "F16", "F32")
ADAPTERS = ("BF16", "F16", "F32", "F64")
PlacedPatches = list[tuple[str, tuple[int, int], Patch]]  # (base key, view of its tensor, patch)


class Misfit(Exception):
    """A pair that does not belong there: the code of its refusal, and a detail for its sentence."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """How a pair is to be read: what adapter_config.json gives it, and the PEFT that saved it (None: not said)."""

    rank: int
    alpha: float
    scaling: float
    dora: bool = False
    version: str | None = None


def patches_of(pair: LoraPair, placement: Placement, weights: Mapping[str, Stored], how: PairSettings) -> PlacedPatches:
    """The patches of a pair. `weights`: what is W, by piece key. Raises Misfit."""
    rank = how.rank
    _check_dtypes(weights, pair.a, pair.b, pair.magnitude)
    if how.dora and pair.magnitude is None:
        raise Misfit("half-a-pair", f"{pair.module} has no lora_magnitude_vector")
    resized = _resized(placement, weights)
    if resized is not None:
        placement = resized
    _check_shapes(pair, placement, weights, rank)
    swapped = is_swapped(pair, placement, how.version)
    patches: PlacedPatches = []
    for rectangle in placement.rectangles:
        factors = _swapped if swapped else _factors
        left, right = factors(pair, rectangle, placement.experts, rank)
        if rectangle.transposed:
            left, right = right, left
        term = Term(module=pair.module, left=left, right=right, rank=rank, alpha=how.alpha, scaling=how.scaling)
        patch = Patch(rows=rectangle.at_rows, columns=rectangle.at_columns, terms=(term,), step=rectangle.step)
        patches.append((rectangle.key, rectangle.view, _with_magnitude(patch, pair, rectangle, placement)))
    return patches


def vector_patch(
    module: str, bias: Stored, placement: Placement, weights: Mapping[str, Stored], *, alpha: float, scaling: float
) -> PlacedPatches:
    """s·lora_B.bias, added to the layer's own bias. Raises Misfit."""
    _check_dtypes(weights, bias)
    patches: PlacedPatches = []
    for rectangle in placement.rectangles:
        if rectangle.out[1] > bias.shape[0] or len(bias.shape) != 1:
            raise Misfit("shape", f"{rectangle.key} has another length than the adapter's {bias.key}")
        left = Factor(stored=bias, rows=(*rectangle.out, 1), columns=(0, 1, 1))
        term = Term(module=module, left=left, right=None, rank=1, alpha=alpha, scaling=scaling)
        patch = Patch(rows=rectangle.at_rows, columns=rectangle.at_columns, terms=(term,), step=rectangle.step)
        patches.append((rectangle.key, rectangle.view, patch))
    return patches


def is_swapped(pair: LoraPair, placement: Placement, version: str | None) -> bool:
    """Whether A of a pair on stacked experts has their outputs and B their inputs (`bot.adapters.expert_sides`). Raises Misfit
    where neither the shapes nor the version tell."""
    if placement.experts == 1:
        return False
    outputs, inputs = _sizes(placement)
    if outputs != inputs:
        return (pair.b.shape[0], pair.a.shape[1]) == (inputs, outputs)
    order = order_of(version, placement.transposed)
    if order is None:
        known = f"peft_version is {version}" if version else "there is no peft_version"
        raise Misfit("stacked-order", f"{pair.module} is {outputs}×{inputs}, and {known}")
    return order == "older"


def _sizes(placement: Placement) -> tuple[int, int]:
    """(outputs, inputs) of a parameter's logical matrices."""
    spans = [(rectangle.out[1], rectangle.into[1]) for rectangle in placement.rectangles]
    return max(out for out, _ in spans), max(into for _, into in spans)


def _swapped(pair: LoraPair, rectangle: Rectangle, experts: int, rank: int) -> tuple[Factor, Factor]:
    """(left, right) of Aᵀ·Bᵀ: A_e's columns are the outputs, B_e's rows the inputs."""
    expert = rectangle.expert
    ranks, every = (expert * rank, (expert + 1) * rank, 1), (expert, rank * experts, experts)
    transposed = not rectangle.transposed
    left = Factor(stored=pair.a, rows=ranks, columns=(*rectangle.out, 1), transposed=transposed)
    right = Factor(stored=pair.b, rows=(*rectangle.into, 1), columns=every, transposed=transposed)
    return left, right


def _factors(pair: LoraPair, rectangle: Rectangle, experts: int, rank: int) -> tuple[Factor, Factor]:
    """(left, right) of the logical out × in rectangle: B_e's rows and A_e's columns, or an embedding's two."""
    if pair.kind == "embedding":
        left = Factor(stored=pair.a, rows=(0, rank, 1), columns=(*rectangle.out, 1), transposed=True)
        return left, Factor(stored=pair.b, rows=(*rectangle.into, 1), columns=(0, rank, 1), transposed=True)
    expert = rectangle.expert
    left = Factor(stored=pair.b, rows=(*rectangle.out, 1), columns=(expert, rank * experts, experts))
    right = Factor(stored=pair.a, rows=(expert * rank, (expert + 1) * rank, 1), columns=(*rectangle.into, 1))
    if rectangle.transposed:  # stored in × out: Aᵀ·Bᵀ
        left, right = (Factor(stored=f.stored, rows=f.rows, columns=f.columns, transposed=True) for f in (left, right))
    return left, right


def _with_magnitude(patch: Patch, pair: LoraPair, rectangle: Rectangle, placement: Placement) -> Patch:
    """DoRA's magnitudes for this rectangle, and which way its norm runs."""
    if pair.magnitude is None:
        return patch
    whole_rows = rectangle.into == (0, _sizes(placement)[1])
    if placement.experts != 1 or not (whole_rows or pair.kind == "embedding"):
        raise Misfit("dora-in-pieces", pair.module)
    along: Literal["rows", "columns"] = "columns" if rectangle.transposed or pair.kind == "embedding" else "rows"
    span = rectangle.into if pair.kind == "embedding" else rectangle.out
    if pair.kind == "embedding" and rectangle.out != (0, _sizes(placement)[0]):
        raise Misfit("dora-in-pieces", pair.module)
    stored = pair.magnitude
    if len(stored.shape) == 1:
        return replace(patch, magnitude=Factor(stored=stored, rows=(*span, 1), columns=(0, 1, 1)), along=along)
    return replace(patch, magnitude=Factor(stored=stored, rows=(0, 1, 1), columns=(*span, 1)), along=along)


def _resized(placement: Placement, weights: Mapping[str, Stored]) -> Placement | None:
    """The placement over a copy that the adapter brought with another number of rows (a resized vocabulary)."""
    if len(placement.rectangles) != 1:
        return None
    (rectangle,) = placement.rectangles
    shape = weights[rectangle.key].shape
    if not shape or shape[0] == rectangle.view[0] or rectangle.transposed or math.prod(shape[1:]) != rectangle.view[1]:
        return None
    rows, columns = (0, shape[0]), (0, rectangle.view[1])
    view = (shape[0], rectangle.view[1])
    first = replace(rectangle, expert=0, step=1, transposed_on_load=False)
    whole = replace(first, view=view, at_rows=rows, at_columns=columns, out=rows, into=columns)
    return Placement(parameter=placement.parameter, rectangles=(whole,), experts=1, transposed=False)


def _check_dtypes(weights: Mapping[str, Stored], *adapter: Stored | None) -> None:
    for weight in weights.values():
        if weight.dtype not in (ADAPTERS if weight.role == "adapter" else WEIGHTS):
            raise Misfit("weight-dtype", f"{weight.key} is stored as {weight.dtype}")
    for tensor in adapter:
        if tensor is not None and tensor.dtype not in ADAPTERS:
            raise Misfit("adapter-dtype", f"{tensor.key} is stored as {tensor.dtype}")


def _check_shapes(pair: LoraPair, placement: Placement, weights: Mapping[str, Stored], rank: int) -> None:
    """A and B against the config's rank and the parameter's logical matrices."""
    outputs, inputs = _sizes(placement)
    a, b = pair.a.shape, pair.b.shape
    if len(a) < 2 or len(b) < 2:
        raise Misfit("not-linear", f"{pair.module}: A is {shape_text(a)}, B is {shape_text(b)}")
    key = placement.rectangles[0].key
    shape = weights[key].shape
    if _is_grouped(shape, a, b):
        raise Misfit("conv-groups", pair.module)
    stacked = rank * placement.experts
    if a[0] != stacked or b[1] != stacked:
        raise Misfit("rank", f"{pair.module}: A has rank {a[0]}, B {b[1]}, the config says {stacked}")
    linear = ((stacked, inputs), (outputs, stacked))
    wanted = ((rank, outputs), (inputs, rank)) if pair.kind == "embedding" else linear
    older = ((stacked, outputs), (inputs, stacked)) if placement.experts > 1 else wanted
    if ((a[0], math.prod(a[1:])), (b[0], math.prod(b[1:]))) in (wanted, older):
        _check_magnitude(pair, outputs, inputs)
        return
    needs = f"{math.prod(a[1:])}×{b[0]}" if pair.kind == "embedding" else f"{b[0]}×{math.prod(a[1:])}"
    transposed = pair.kind == "linear" and (b[0], math.prod(a[1:])) == (inputs, outputs)
    raise Misfit("transposed" if transposed else "shape", f"{key} is {shape_text(shape)}, the adapter needs {needs}")


def _is_grouped(shape: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """A convolution in groups, as PEFT adapts it: A sees all input channels, B is grouped like the layer."""
    if not len(shape) == len(a) > 2 or not shape[1] or a[1] <= shape[1] or a[1] % shape[1]:
        return False
    return b[1] == a[0] // (a[1] // shape[1])  # none, where there are more groups than ranks


def _check_magnitude(pair: LoraPair, outputs: int, inputs: int) -> None:
    if pair.magnitude is not None:
        wanted = inputs if pair.kind == "embedding" else outputs
        if math.prod(pair.magnitude.shape) != wanted:
            shape = shape_text(pair.magnitude.shape)
            raise Misfit("shape", f"{pair.magnitude.key} is {shape}, it needs {wanted} numbers")


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape for a sentence: 64×32."""
    return "×".join(map(str, shape)) or "a single number"
