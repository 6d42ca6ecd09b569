"""Several adapters that were merged as one: the combined adapter, computed again from those that were given.

With torch and PEFT's own merge functions in float64; nothing is shared with the code that combined them. What PEFT
leaves to chance is fixed by the recipe that verification.json names: of equal magnitudes pruning keeps the first, and
DARE keeps the values whose 64-bit word of Philox 4×64 (keyed by the first 16 bytes, little-endian, of
sha256("seed/adapter/module/side")) lies below density · 2⁶⁴.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot.checks.expected import lora
from bot.checks.expected.adapter_files import CONFIG, bare, tensors_of
from bot.checks.finding import counted, finding
from bot.checks.reading.checkpoint import TensorRef
from bot.checks.reading.folders import read_json
from bot.records import Finding, Json

if TYPE_CHECKING:
    from torch import Tensor

    from bot.checks.case import Case

ALLOWED = 1e-12  # relative to a tensor's largest value: some thousand roundings of float64


@dataclass(frozen=True, kw_only=True)
class Lora:
    """An adapter's tensors by module: its A and B, and what their product is scaled by; and other weights it holds."""

    halves: dict[str, dict[str, TensorRef]]
    scaling: dict[str, float]
    others: dict[str, TensorRef]


def combined(case: Case) -> Finding:
    """The adapter that was merged is the combination of the given ones that the report names."""
    how, folders = case.subject.combination or {}, case.subject.adapters
    made, given = read_lora(case.subject.adapter), [read_lora(folder) for folder in folders]
    allowed = f"{ALLOWED:g}, relative"
    fails = list(_misfits(made, given))
    worst = 0.0
    if not fails:
        for module in made.halves:
            error = _error(module, made, given, how)
            worst = max(worst, error)
            if not error <= ALLOWED:
                fails.append(f"{module} is not the combination of the given adapters: off by {error:.1e}.")
    if fails:
        return finding("combined", "fail", counted(len(fails), "fault"), allowed, fails[0], fails[1:])
    count = counted(len(made.halves), "module")
    why = f"{count} of {counted(len(given), 'adapter')}, combined again ({how['kind']}), give this one."
    return finding("combined", "pass", f"{worst:.1e}", allowed, why)


def read_lora(folder: Path) -> Lora:
    """Headers and the config; no numbers."""
    config = read_json(folder / CONFIG) or {}
    halves: dict[str, dict[str, TensorRef]] = {}
    others: dict[str, TensorRef] = {}
    for key, tensor in tensors_of(folder).items():
        module, half, rest = bare(key).rpartition(".lora_")
        if half:
            halves.setdefault(module, {})[rest.removeprefix("embedding_")[:1]] = tensor
        else:
            others[bare(key).removesuffix(".weight").removesuffix(".base_layer")] = tensor
    return Lora(halves=halves, scaling={module: _scaling(config, module) for module in halves}, others=others)


def _scaling(config: Json, module: str) -> float:
    scale = lora.scale(module, config)
    if isinstance(scale, str):
        raise ValueError(scale)
    return scale[1]


def _misfits(made: Lora, given: list[Lora]) -> Iterator[str]:
    """Modules too many or too few, a scaling that is not 1, and weights that came along and are not the given ones."""
    wanted = {module for adapter in given for module in adapter.halves}
    for module in sorted(wanted ^ made.halves.keys()):
        yield f"{module} is changed by {'a given' if module in wanted else 'the combined'} adapter only."
    for module, scaling in made.scaling.items():
        if scaling != 1:
            yield f"{module} is scaled by {scaling:g} where the combined adapter needs 1."
    for module in sorted({module for adapter in (made, *given) for module in adapter.others}):
        owners = [adapter.others[module] for adapter in given if module in adapter.others]
        merged = made.others.get(module)
        if not owners or merged is None or any(_bytes(tensor) != _bytes(merged) for tensor in owners):
            yield f"The adapters' own weight of {module} is not the one that was merged."


def _error(module: str, made: Lora, given: list[Lora], how: Json) -> float:
    """How far the combined A and B are from what they must be, relative to their largest value; inf: other shapes."""
    import torch

    owners = [(index, adapter) for index, adapter in enumerate(given) if module in adapter.halves]
    factors = [float(how["weights"][index]) * adapter.scaling[module] for index, adapter in owners]
    halves = [_tensor(made.halves[module][side]) for side in "AB"]
    givens = [[_tensor(adapter.halves[module][side]) for _, adapter in owners] for side in "AB"]
    if how["kind"] == "svd":
        most = how.get("rank") or max(p["A"].stored.shape[0] for adapter in given for p in adapter.halves.values())
        return _svd_error(halves, givens, factors, most)
    if how["kind"] == "cat":
        wanted = [torch.cat([f * a for f, a in zip(factors, givens[0], strict=True)]), torch.cat(givens[1], dim=1)]
    else:
        names = [[f"{index}/{module}/{side}" for index, _ in owners] for side in "AB"]
        wanted = [_mixed(givens[at], names[at], factors, how, at) for at in (0, 1)]
    return max(_distance(half, other) for half, other in zip(halves, wanted, strict=True))


def _distance(half: Tensor, wanted: Tensor) -> float:
    if half.shape != wanted.shape:
        return math.inf
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    error = float((half - wanted).abs().max()) if wanted.numel() else 0.0
    return error / scale if scale else error


def _mixed(values: list[Tensor], names: list[str], factors: list[float], how: Json, axis: int) -> Tensor:
    """One side of one module by PEFT's functions. `axis`: where the rank is (A: 0, B: 1)."""
    import torch
    from peft.utils import merge_utils

    kind, rank = how["kind"], max(value.shape[axis] for value in values)
    pruned = [_filled(_pruned(value, name, how), axis, rank) for value, name in zip(values, names, strict=True)]
    roots = [math.copysign(math.sqrt(abs(f)), f if axis == 0 and f else 1.0) for f in factors]
    weights = torch.tensor(roots, dtype=torch.float64)
    if not kind.endswith("ties"):
        return _double(merge_utils.task_arithmetic(pruned, weights))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a density of 1 prunes nothing: it was pruned here already
        return _double(merge_utils.ties(pruned, weights, 1.0, how["majority_sign"]))


def _filled(value: Tensor, axis: int, rank: int) -> Tensor:
    filled = value.new_zeros([rank if at == axis else size for at, size in enumerate(value.shape)])
    filled.narrow(axis, 0, value.shape[axis]).copy_(value)
    return filled


def _pruned(value: Tensor, name: str, how: Json) -> Tensor:
    import torch

    density = float(how.get("density", 1))
    if density >= 1:
        return value
    if how["kind"].startswith("dare"):
        import numpy as np

        key = int.from_bytes(hashlib.sha256(f"{how['seed']}/{name}".encode()).digest()[:16], "little")
        drawn = np.random.Philox(key=key).random_raw(value.numel())
        keep = torch.from_numpy(drawn < np.uint64(math.floor(density * 2**64))).reshape(value.shape)
        return value * keep / density
    order = torch.sort(value.abs().reshape(-1), descending=True, stable=True).indices
    mask = torch.zeros(value.numel(), dtype=torch.float64)
    mask[order[: int(density * value.numel())]] = 1
    return value * mask.reshape(value.shape)


def _svd_error(halves: list[Tensor], givens: list[list[Tensor]], factors: list[float], most: int) -> float:
    """How far P = B·A is from a best approximation of D = Σ f·B·A by its rank.

    Not compared with another SVD, of which there are many where singular values are equal. P is a best approximation
    exactly where what is left, E = D − P, is orthogonal to it in rows and columns (Eᵀ·P = E·Pᵀ = 0) and nowhere larger
    than it is anywhere (σ₁(E) ≤ σᵣ(P)). All of it in an orthonormal basis of the factors, as D is too large.
    """
    import torch

    a, b = halves[0].flatten(1), halves[1].flatten(1)
    left = torch.cat([factor.flatten(1) for factor in givens[1]], dim=1)
    right = torch.cat([f * factor.flatten(1) for f, factor in zip(factors, givens[0], strict=True)])
    if len(a) != min(most, len(right), len(left), right.shape[1]) or b.shape != (len(left), len(a)):
        return math.inf
    columns, rows = torch.linalg.qr(torch.cat([left, b], dim=1))[0], torch.linalg.qr(torch.cat([right, a]).T)[0]
    whole, part = (columns.T @ left) @ (right @ rows), (columns.T @ b) @ (a @ rows)
    # Of the terms, not of their sum: where they cancel, what is left is their rounding.
    terms = zip(factors, *givens, strict=True)
    size: float = sum(abs(f) * float(a_given.norm() * b_given.norm()) for f, a_given, b_given in terms)
    if not size:
        return float(part.norm())
    rest = whole - part
    slant = max(float((rest.T @ part).norm()), float((rest @ part.T).norm())) / size**2
    kept = torch.linalg.svdvals(part)[: len(a)]
    lost = torch.linalg.svdvals(rest)
    return max(slant, (float(lost[0]) - float(kept[-1])) / size)


def _bytes(tensor: TensorRef) -> bytes:
    with tensor.path.open("rb") as opened:
        opened.seek(tensor.stored.start)
        return opened.read(tensor.stored.stop - tensor.stored.start)


def _tensor(tensor: TensorRef) -> Tensor:
    from bot.checks.reading.packed import read_component

    return read_component(tensor).double()


def _double(value: Any) -> Tensor:
    """PEFT is untyped."""
    import torch

    assert isinstance(value, torch.Tensor)
    return value.to(torch.float64)
