"""compressed-tensors' weights, by the package's own decompression, with scales widened to float32 first.

Which weights a config's groups mean, and how a group's numbers are packed, is the package's to say: it has many forms, and each of
them is asked of itself. So torch and the package are imported here, once a weight is packed so.

(With scales of 16 bits it multiplies in 16 bits; the dequantised number is the product itself.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bot.checks.reading import fp8
from bot.checks.reading.checkpoint import PackedWeight, TensorRef
from bot.checks.reading.fp8 import extras as extras
from bot.checks.reading.packed import read_component
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
    """Modules with scales beside their weight, each with the scheme of its config group."""
    whole = configured(quantization)
    packed = {}
    for key in tensors:
        module, _, name = key.rpartition(".")
        scaled = f"{module}.weight_scale" in tensors
        if name == "weight_packed" or (name == "weight" and scaled):
            components = {role: tensors[f"{module}.{role}"] for role in ROLES if f"{module}.{role}" in tensors}
            scheme = scheme_of(module, whole)
            if scheme is None:
                raise ValueError(f"{module} is packed, and no config group names it.")
            form = str(scheme.format or whole.format)
            packed[f"{module}.weight"] = PackedWeight(dense=dense, components=components, shape=_shape(components), dtype=dtype,
                                               settings={"scheme": scheme, "format": form})  # fmt: skip
    return packed


def dense(packed: PackedWeight, slab: int) -> Tensor:
    """The package's own decompression."""
    from compressed_tensors.compressors import BaseCompressor

    state = {role: read_component(ref) for role, ref in packed.components.items()}
    state["weight_scale"] = state["weight_scale"].float()
    compressor = BaseCompressor.get_value_from_registry(packed.settings["format"])
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
    args = packed.settings["scheme"].weights
    return "fp8" if (str(args.type), args.num_bits, str(args.strategy)) == ("float", 8, "channel") else ""


def quantise(exact: Tensor, packed: PackedWeight) -> dict[str, Tensor]:
    """The package's own codes, under its own scales rounded to bfloat16; those below 2⁻¹⁷ are rounded up to a multiple
    of 2⁻²⁴ instead, which float16 has too (`bot` writes numbers that every loader takes without a further rounding)."""
    import torch
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    args = packed.settings["scheme"].weights
    if name_of(packed) != "fp8":
        raise ValueError("it is stored in a form of compressed-tensors that no merge writes")
    low, high = exact.amin(1, keepdim=True), exact.amax(1, keepdim=True)
    plain, zero = calculate_qparams(low, high, args.model_copy(update={"scale_dtype": None}))
    near = plain.to(torch.bfloat16).float()
    scale = torch.where(near < 2.0**-17, torch.ceil(plain * 2.0**24) * 2.0**-24, near)
    scale = torch.where((low == 0) & (high == 0), torch.tensor(2.0**-7), scale)
    return {"weight": quantize(exact, scale, zero, args, dtype=torch.float8_e4m3fn), "weight_scale": scale}


def written_again(exact: Tensor, packed: PackedWeight) -> dict[str, Tensor]:
    """Floats of eight bits in the base's own form (`--quantize same`): scales in the base's dtype, by the rule of FP8 bases."""
    args = packed.settings["scheme"].weights
    if (str(args.type), args.num_bits, args.symmetric) != ("float", 8, True):
        raise ValueError("it is stored in a form of compressed-tensors that no merge writes")
    block = args.block_structure
    components = {"weight": packed.components["weight"], "scale": packed.components["weight_scale"]}
    settings = {"block": tuple(map(int, block)) if block else None}
    made = fp8.quantise(exact, replace(packed, components=components, settings=settings))
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


def _shape(components: Mapping[str, TensorRef]) -> tuple[int, ...]:
    if "weight_shape" in components:
        return tuple(int(extent) for extent in read_component(components["weight_shape"]))
    if "weight" not in components:
        raise ValueError(f"{components['weight_packed'].stored.key} has no weight_shape.")
    return components["weight"].stored.shape
