"""compressed-tensors' weights: integers of 1 to 8 bits and floats of eight are read by rules of the verifier's own, in numpy.

Which of them a config means is read by `compressed_schemes`, their numbers by `compressed_numbers`; tests hold both to the package.
What those leave (FP4 and the MX forms, say, or a config in another spelling) goes through the package's own matching and
decompression, with scales widened to float32 first. Then it and torch are imported, as they are where a merge is stored in the form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from bot.checks.reading import fp8
from bot.checks.reading.checkpoint import PackedWeight, TensorRef
from bot.checks.reading.compressed_numbers import is_read, numbers_of, shape_of
from bot.checks.reading.compressed_schemes import Packing, Unusual, read_groups, target_of
from bot.checks.reading.fp8 import extras as extras
from bot.checks.reading.packed import read_component
from bot.checks.reading.stored_numbers import Array
from bot.records import Json

if TYPE_CHECKING:
    from torch import Tensor

NAME = "compressed-tensors"
PACKAGE = "compressed-tensors"
ROLES = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")


def recognises(quantization: Json) -> bool:
    """Whether this `quantization_config` is the package's."""
    return quantization.get("quant_method") == NAME


def unpack(tensors: Mapping[str, TensorRef], quantization: Json, config: Json, dtype: str) -> dict[str, PackedWeight]:
    """Modules with scales beside their weight, each as its config group packs it. Raises ValueError for one that no group explains,
    and ImportError where the package is needed and is not there."""
    groups = _groups(quantization)
    whole = cache(partial(configured, quantization))
    packed = {}
    for key in tensors:
        module, _, name = key.rpartition(".")
        scaled = f"{module}.weight_scale" in tensors
        if name == "weight_packed" or (name == "weight" and scaled):
            if not scaled:
                raise ValueError(f"{module} is packed, and has no scales.")
            components = {role: tensors[f"{module}.{role}"] for role in ROLES if f"{module}.{role}" in tensors}
            packing = _packing_of(module, groups) if groups is not None else None
            shape = shape_of(components, packing)
            own = packing is not None and is_read(components, shape, packing)
            settings = {"packing": packing} if own else _settings_by_package(module, whole())
            packed[f"{module}.weight"] = PackedWeight(
                dense=dense, components=components, shape=shape, dtype=dtype, settings=settings
            )
    return packed


def dense(packed: PackedWeight, slab: int) -> Array | Tensor:
    """Rows × columns in float32: by rules of our own, or (where the settings have a `scheme`) by the package's decompression."""
    if "scheme" not in packed.settings:
        return numbers_of(packed)
    from compressed_tensors.compressors import BaseCompressor

    state = {role: read_component(ref) for role, ref in packed.components.items()}
    state["weight_scale"] = state["weight_scale"].float()
    compressor = BaseCompressor.get_value_from_registry(packed.settings["packing"].format)
    weight: Tensor = compressor.decompress(state, packed.settings["scheme"])["weight"]
    return weight.float()


def modules(model: Any, quantization: Json) -> list[str]:
    """Those that the package's own matching finds for its config groups."""
    from compressed_tensors.utils.match import match_named_modules

    whole = configured(quantization)
    matches = [match_named_modules(model, scheme.targets, whole.ignore) for scheme in whole.config_groups.values()]
    return [name for matched in matches for name, module in matched if hasattr(module, "weight")]


def name_of(packed: PackedWeight) -> str:
    """Floats of eight bits with a scale for each channel are what `--quantize fp8` writes."""
    packing: Packing = packed.settings["packing"]
    return "fp8" if (packing.kind, packing.bits, packing.strategy) == ("float", 8, "channel") else ""


def quantise(exact: Tensor, packed: PackedWeight) -> dict[str, Tensor]:
    """The package's own codes, under its own scales rounded to bfloat16; those below 2⁻¹⁷ are rounded up to a multiple
    of 2⁻²⁴ instead, which float16 has too (`bot` writes numbers that every loader takes without a further rounding)."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    if name_of(packed) != "fp8":
        raise ValueError("it is stored in a form of compressed-tensors that no merge writes")
    args = QuantizationArgs(
        num_bits=8, type="float", strategy="channel", symmetric=packed.settings["packing"].symmetric
    )
    low, high = exact.amin(1, keepdim=True), exact.amax(1, keepdim=True)
    plain, zero = calculate_qparams(low, high, args)
    near = plain.to(torch.bfloat16).float()
    scale = torch.where(near < 2.0**-17, torch.ceil(plain * 2.0**24) * 2.0**-24, near)
    scale = torch.where((low == 0) & (high == 0), torch.tensor(2.0**-7), scale)
    return {"weight": quantize(exact, scale, zero, args, dtype=torch.float8_e4m3fn), "weight_scale": scale}


def written_again(exact: Tensor, packed: PackedWeight) -> dict[str, Tensor]:
    """Floats of eight bits in the base's own form (`--quantize same`): scales in the base's dtype, by the rule of FP8 bases."""
    packing: Packing = packed.settings["packing"]
    if (packing.kind, packing.bits, packing.symmetric) != ("float", 8, True):
        raise ValueError("it is stored in a form of compressed-tensors that no merge writes")
    components = {"weight": packed.components["weight"], "scale": packed.components["weight_scale"]}
    made = fp8.quantise(exact, replace(packed, components=components, settings={"block": packing.block}))
    return {"weight": made["weight"], "weight_scale": made["scale"]}


def configured(quantization: Json) -> Any:
    """The package's own reading of the `quantization_config`."""
    from compressed_tensors.quantization import QuantizationConfig

    known = QuantizationConfig.model_fields.keys()
    return QuantizationConfig.model_validate({name: value for name, value in quantization.items() if name in known})


def scheme_of(module: str, whole: Any) -> Any:
    """The config group of a module, by the package's own matching. Which class it is, a checkpoint does not say: a name
    with `embed` in it is an Embedding, another one a Linear."""
    import torch
    from compressed_tensors.utils.match import match_targets

    with torch.device("meta"):
        kind = torch.nn.Embedding(1, 1) if "embed" in module.rpartition(".")[2] else torch.nn.Linear(1, 1)
    targets = {target: scheme for scheme in whole.config_groups.values() for target in scheme.targets}
    matched = match_targets(module, kind, targets)
    return targets[matched[0]] if matched else None


def _groups(quantization: Json) -> dict[str, Packing | None] | None:
    try:
        return read_groups(quantization)
    except Unusual:
        return None


def _packing_of(module: str, groups: Mapping[str, Packing | None]) -> Packing | None:
    target = target_of(module, groups)
    if target is None:
        raise ValueError(f"{module} is packed, and no config group names it.")
    return groups[target]


def _settings_by_package(module: str, whole: Any) -> Json:
    """The same of a weight that the package is to decompress, and its scheme."""
    scheme = scheme_of(module, whole)
    if scheme is None:
        raise ValueError(f"{module} is packed, and no config group names it.")
    args = scheme.weights
    if args is None:
        raise ValueError(f"{module} is packed, and its config group leaves weights alone.")
    kind, strategy = (getattr(value, "value", value) for value in (args.type, args.strategy))
    high, wide = args.block_structure or (0, 0)
    packing = Packing(format=str(scheme.format or whole.format), kind=kind, bits=args.num_bits, symmetric=args.symmetric,
                      strategy=strategy, group_size=args.group_size or 0, block=(high, wide) if high else None)  # fmt: skip
    return {"packing": packing, "scheme": scheme}
