"""Quantised bases, adapters over them, and reference merges: by the libraries that define the forms, and PEFT's own deltas."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bitsandbytes import functional
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from tests.faults import models
from tests.faults.models import LLAMA, Built, Recipe

Tensors = dict[str, torch.Tensor]
SMALL = {**LLAMA, "hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2, "tie_word_embeddings": False}
RECIPE = Recipe(config=SMALL, tokenizer=True)
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
       "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16", "llm_int8_skip_modules": ["lm_head"]}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a weight is stored (its tensors by key, and what they mean in float32), and what config.json says."""

    pack: Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]
    said: dict[str, Any]


def nf4(key: str, weight: torch.Tensor, kind: str = "nf4", double: bool = True) -> tuple[Tensors, torch.Tensor]:
    codes, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=double)
    stored = {key: codes, **{f"{key}.{name}": value for name, value in state.as_dict(packed=True).items()}}
    again = functional.QuantState.from_dict(state.as_dict(packed=True), device=torch.device("cpu"))
    again.dtype = torch.float32
    return stored, functional.dequantize_4bit(codes, again)


def fp4(key: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    return nf4(key, weight, "fp4", double=False)


def int8(key: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    codes, scale, _ = functional.int8_vectorwise_quant(weight.half())
    module = key.removesuffix(".weight")
    stored = {key: codes, f"{module}.SCB": scale, f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, functional.int8_vectorwise_dequant(codes, scale)


def fp8(key: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Blocks of 32 × 32."""
    tiles = weight.float().reshape(weight.shape[0] // 32, 32, weight.shape[1] // 32, 32)
    scale = tiles.abs().amax(dim=(1, 3)) / 448
    codes = (tiles / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
    meant = Fp8Dequantize(None)._dequantize_one(codes, scale, output_dtype=torch.float32)
    return {key: codes, f"{key}_scale_inv": scale}, meant


def compressed(key: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """int4 in groups of 32."""
    from compressed_tensors.compressors import BaseCompressor

    scheme = ct_scheme()
    scale = weight.float().reshape(weight.shape[0], -1, 32).abs().amax(-1) / 7
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    stored = compressor.compress({"weight": weight.float(), "weight_scale": scale}, scheme)
    module = key.removesuffix(".weight")
    return {f"{module}.{name}": value for name, value in stored.items()}, compressor.decompress(stored, scheme)[
        "weight"
    ]


def ct_scheme() -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)
    return QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")


def ct_said() -> dict[str, Any]:
    from compressed_tensors.quantization import QuantizationConfig

    whole = QuantizationConfig(
        config_groups={"group_0": ct_scheme()}, format="pack-quantized", quantization_status="compressed",
        ignore=["lm_head"],
    )  # fmt: skip
    found: dict[str, Any] = json.loads(whole.model_dump_json())
    return found


FORMS = {
    "nf4": lambda: Form(pack=nf4, said=NF4),
    "fp4": lambda: Form(pack=fp4, said={**NF4, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}),
    "int8": lambda: Form(pack=int8, said={"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}),
    "fp8": lambda: Form(pack=fp8, said={"quant_method": "fp8", "weight_block_size": [32, 32]}),
    "compressed": lambda: Form(pack=compressed, said=ct_said()),
}


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """`base` is quantised, `dense` means the same in float32, `original` is the model before; `merged` the reference merge."""

    base: Path
    dense: Path
    original: Path
    adapter: Path
    merged: Path

    def as_built(self) -> Built:
        """For the helpers of plain models."""
        return Built(recipe=RECIPE, base=self.base, adapter=self.adapter, merged=self.merged)


def build(name: str, root: Path) -> Quantised:
    """All of them, below `root`."""
    form = FORMS[name]()
    made = Quantised(**{one: root / one for one in ("base", "dense", "original", "adapter", "merged")})
    models.save_base(RECIPE, made.original, 0)
    weights = load_file(made.original / "model.safetensors")
    stored: Tensors = {}
    meant: Tensors = {}
    for key, weight in weights.items():
        if ".layers." in key and weight.dim() == 2:
            parts, meant[key] = form.pack(key, weight)
            stored |= parts
        else:
            stored[key] = meant[key] = weight
    copied(made.original, made.base, stored, quantization_config=form.said)
    copied(made.original, made.dense, meant)
    models.save_adapter(RECIPE, made.dense, made.adapter)
    merge(made, made.dense, made.merged)
    return made


def copied(folder: Path, to: Path, tensors: Tensors, **said: Any) -> Path:
    """A copy of the folder with other weights, and more in its config.json."""
    shutil.copytree(folder, to)
    held = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    save_file(held, to / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **said}))
    return to


def deltas(made: Quantised) -> Tensors:
    """PEFT's ΔW in float64."""
    return models.deltas(replace(made.as_built(), base=made.dense))


def merge(made: Quantised, dense: Path, folder: Path) -> Path:
    """bfloat16: what the dense weights and PEFT's deltas come to, rounded once."""
    changes = deltas(made)
    tensors = {
        key: models.round_by_trial(weight.double() + changes.get(key, 0.0), torch.bfloat16)
        for key, weight in load_file(dense / "model.safetensors").items()
    }
    return copied(made.original, folder, tensors)


# --- quantised results ------------------------------------------------------------------------------------------------------


def fp8_rows(key: str, exact: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """What `--quantize fp8` writes: a scale for each row, a bfloat16 number."""
    scale = (exact.abs().amax(1, keepdim=True) / 448).bfloat16().float()
    codes = (exact / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {key: codes, f"{key}_scale": scale}, codes.float() * scale


def fp8_said() -> dict[str, Any]:
    args = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {"targets": ["Linear"], "weights": {**args, "strategy": "channel"},
             "input_activations": {**args, "strategy": "token", "dynamic": True}}  # fmt: skip
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group},
            "ignore": ["lm_head"], "quantization_status": "compressed"}  # fmt: skip


RESULTS = {**FORMS, "fp8": lambda: Form(pack=fp8_rows, said=fp8_said())}


def exact_merge(made: Quantised, dense: Path) -> Tensors:
    """In float64, nothing rounded."""
    changes = deltas(made)
    weights = load_file(dense / "model.safetensors")
    return {key: weight.double() + changes.get(key, 0.0) for key, weight in weights.items()}


def store(made: Quantised, exact: Tensors, name: str, folder: Path) -> Path:
    """The exact merge, stored as --quantize of that name has it."""
    form = RESULTS[name]()
    stored: Tensors = {}
    for key, value in exact.items():
        if ".layers." in key and value.dim() == 2:
            stored |= form.pack(key, value.float())[0]
        else:
            stored[key] = models.round_by_trial(value, torch.bfloat16)
    return copied(made.original, folder, stored, quantization_config=form.said)
