"""Write a shape's base and adapter: random weights, drawn and written piece by piece, in well under 1 GiB of memory.

python bench/build_shape.py SHAPE BASE ADAPTER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from shapes import SHAPES, Shape
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

PIECE = 1 << 24  # elements drawn at once
CODES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def build(shape: Shape, base: Path, adapter: Path) -> None:
    """Make both folders. The adapter's config is written last: it says that all is there."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.model_type, dtype="bfloat16", **shape.config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        save(model, base)
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = get_peft_model(model, lora)
    adapter.mkdir(parents=True, exist_ok=True)
    write(adapter / "adapter_model.safetensors", get_peft_model_state_dict(adapted))
    lora.inference_mode = True
    lora.save_pretrained(adapter)


def save(model: PreTrainedModel, base: Path) -> None:
    """As `save_pretrained` lays it out. A tied head is one parameter with the embedding, so it is written once."""
    weights = dict(model.named_parameters())
    split = split_torch_state_dict_into_shards(weights, max_shard_size="5GB")
    base.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(base)
    for file, names in split.filename_to_tensors.items():
        write(base / file, {name: weights[name] for name in names})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (base / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A safetensors file of random values in these meta tensors' shapes and dtypes, ordered by name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, like in sorted(tensors.items()):
        begin, end = end, end + like.numel() * like.element_size()
        header[name] = {"dtype": CODES[like.dtype], "shape": list(like.shape), "data_offsets": [begin, end]}
    blob = json.dumps(header, separators=(",", ":")).encode()
    blob += b" " * (-len(blob) % 8)
    with path.open("wb") as file:
        file.write(len(blob).to_bytes(8, "little") + blob)
        for name, like in sorted(tensors.items()):
            for piece in values(name, like):
                file.write(piece.view(torch.uint8).numpy())


def values(name: str, like: torch.Tensor) -> Iterator[torch.Tensor]:
    """Norms are 1; A as PEFT draws it and B not 0, so that the delta is a few percent of W."""
    std = 0.01 if "lora_B" in name else (3 * like.shape[-1]) ** -0.5 if "lora_A" in name else 0.02
    for begin in range(0, like.numel(), PIECE):
        piece = torch.ones(min(PIECE, like.numel() - begin), dtype=like.dtype, device="cpu")
        yield piece if name.endswith("norm.weight") else piece.normal_(std=std)


if __name__ == "__main__":
    build(SHAPES[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3]))
