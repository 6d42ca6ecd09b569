"""Which weights a compressed-tensors config packs, and how: its config groups, read without the package.

The file format is the package's QuantizationConfig (its `quantization/quant_config.py`, `quant_scheme.py` and `quant_args.py`) as
JSON: `config_groups`, in which a group has `targets` (names of modules, `re:` with a regular expression, classes), the arguments of
its `weights`, and a `format` where that is not the whole config's. What is written there in any other way than the package itself
writes it is `Unusual`, and then the package is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bot.records import Json
from bot.untrusted.patterns import first

PATTERN = "re:"
GROUP = {"targets", "weights", "input_activations", "output_activations", "format"}
ARGUMENTS = {
    "num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder", "scale_dtype", "zp_dtype",
    "observer", "observer_kwargs",
}  # fmt: skip
STRATEGIES = ("tensor", "channel", "group", "block")


class Unusual(Exception):
    """A config that is not read here."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How the weights of a config group are packed. `kind`: int or float; `group_size`: of the strategy group, else 0;
    `block`: rows × columns, of the strategy block; `reordered`: `weight_g_idx` says which column is of which group."""

    format: str
    kind: str
    bits: int
    symmetric: bool
    strategy: str
    group_size: int = 0
    block: tuple[int, int] | None = None
    reordered: bool = False


def read_groups(quantization: Json) -> dict[str, Packing | None]:
    """Every target of a `quantization_config` and how what it names is packed: None where that is not read here.

    Raises Unusual where the config as a whole is not. `ignore` is left out: what has scales beside it is packed, whatever it says.
    """
    groups, ignore = quantization.get("config_groups"), quantization.get("ignore")
    rotation = quantization.get("transform_config") or {}
    is_unrotated = isinstance(rotation, dict) and not rotation.get("config_groups")
    sparsity = quantization.get("sparsity_config") or {}
    is_dense = isinstance(sparsity, dict) and sparsity.get("format", "dense") == "dense"
    if not (isinstance(groups, dict) and is_unrotated and is_dense and (ignore is None or _are_names(ignore))):
        raise Unusual
    packings: dict[str, Packing | None] = {}
    for group in groups.values():
        if not isinstance(group, dict) or group.keys() - GROUP or not _are_names(group.get("targets")):
            raise Unusual
        try:
            packing = _packing(group.get("weights"), group.get("format") or quantization.get("format"))
        except Unusual:
            packing = None
        packings |= dict.fromkeys(group["targets"], packing)
    # The package sorts a name with `re:` inside among the patterns.
    if any(PATTERN in target and not target.startswith(PATTERN) for target in packings):
        raise Unusual
    return packings


def target_of(module: str, targets: Mapping[str, Any]) -> str | None:
    """The target that a module goes by: its name, else the first pattern (in their own order) that matches its beginning, else its
    class. Raises BadPattern, and Refused for a pattern that takes too long.

    Which class it is, a checkpoint does not say: a module with `embed` in its name is an Embedding, another one a Linear.
    """
    if module in targets:
        return module
    patterns = sorted(target for target in targets if target.startswith(PATTERN))
    matched = first((pattern.removeprefix(PATTERN) for pattern in patterns), module)
    if matched is not None:
        return patterns[matched.at]
    kind = "Embedding" if "embed" in module.rpartition(".")[2] else "Linear"
    return next((name for name in (kind, "Module") if name in targets), None)


def _packing(weights: Any, form: Any) -> Packing:
    """The `weights` of a group, as the package checks and completes them. Raises Unusual."""
    if not isinstance(weights, dict) or weights.keys() - ARGUMENTS or not isinstance(form, str):
        raise Unusual
    bits, kind, symmetric = weights.get("num_bits", 8), weights.get("type", "int"), weights.get("symmetric", True)
    size, block, strategy = weights.get("group_size"), weights.get("block_structure"), weights.get("strategy")
    order = weights.get("actorder") or None
    plain = (
        _is_count(bits)
        and kind in ("int", "float")
        and isinstance(symmetric, bool)
        and (size in (None, -1) or _is_count(size))
        and (block is None or (isinstance(block, list) and len(block) == 2 and all(map(_is_count, block))))
        and weights.get("dynamic", False) is False
        and order in (None, "weight", "static", "group", "dynamic")
    )
    if not plain:
        raise Unusual
    strategy = strategy or ("tensor" if size is None else "channel" if size == -1 else "group")
    group_size = max(0, size or 0)
    if (
        strategy not in STRATEGIES
        or (group_size > 0) != (strategy == "group")
        or (block is None) == (strategy == "block")
    ):
        raise Unusual
    return Packing(
        format=form,
        kind=kind,
        bits=bits,
        symmetric=symmetric,
        strategy=strategy,
        group_size=group_size,
        block=(block[0], block[1]) if block else None,
        reordered=order in ("group", "dynamic"),
    )


def _is_count(number: Any) -> bool:
    return type(number) is int and number > 0


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)
