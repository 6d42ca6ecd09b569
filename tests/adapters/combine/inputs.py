"""A small model of every kind of layer that LoRA knows, and adapters over it, made and saved by PEFT itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bot.adapters.combine import Predicted, combine, notation, predict
from bot.events import silent
from bot.pull import pin
from bot.records import Combination, Ref, Request, Source

EVERY = [
    {"kind": "cat"},
    {"kind": "linear"},
    {"kind": "svd"},
    {"kind": "svd", "rank": 2},
    {"kind": "ties", "density": 0.5},
    {"kind": "dare_linear", "density": 0.5, "seed": 4},
    {"kind": "dare_ties", "density": 0.5, "seed": 4, "majority_sign": "frequency"},
    {"kind": "magnitude_prune", "density": 0.3},
]
each_kind = pytest.mark.parametrize("how", EVERY, ids=lambda how: "-".join(map(str, how.values())))

LAYERS = ["table", "image", "sound", "first", "second"]


class Small(nn.Module):
    """Embedding 11 × 6, Conv2d 4 → 6 (3 × 3), Conv1d 4 → 6 (3), Linear 6 → 8 and 8 → 5."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 6)
        self.image = nn.Conv2d(4, 6, 3)
        self.sound = nn.Conv1d(4, 6, 3)
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 5)

    def forward(self, tokens: Tensor, pixels: Tensor, waves: Tensor) -> Tensor:
        seen = self.image(pixels).mean((2, 3)) + self.sound(waves).mean(2) + self.table(tokens).mean(1)
        return self.second(torch.tanh(self.first(seen)))


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    pixels, waves = torch.randn(2, 4, 5, 5, dtype=torch.float64), torch.randn(2, 4, 7, dtype=torch.float64)
    return torch.randint(0, 11, (2, 5)), pixels, waves


def small() -> Small:
    return Small().double()


def save(folder: Path, *, seed: int, dtype: torch.dtype = torch.float64, **lora: Any) -> Path:
    """An adapter over Small with random A and B."""
    settings = {"r": 3, "lora_alpha": 6, "target_modules": LAYERS} | lora
    adapted = get_peft_model(small(), LoraConfig(**settings), autocast_adapter_dtype=False)
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter).to(dtype)
    adapted.save_pretrained(folder)
    return folder


def pinned(folder: Path) -> Source:
    """The adapter in a folder as `pin` sees it; no base is looked at."""
    from bot.hub import Hub

    base, none = Ref(text="none"), Source(role="base", ref=Ref(text="none"), repo=None, revision=None, sha="", files=(),
                                          headers=(), texts={})  # fmt: skip
    return pin(Request(adapter=Ref(text=str(folder), folder=folder), base=base), Hub(), silent, {base: none}).adapter


def predicted(adapters: Sequence[Path], **how: Any) -> Predicted:
    settled = notation.with_defaults(Combination(**how), len(adapters))
    assert settled is not None
    return predict([pinned(folder) for folder in adapters], settled)


def combined(adapters: Sequence[Path], target: Path, **how: Any) -> Path:
    """The folder of the combined adapter."""
    found = predicted(adapters, **how)
    assert not found.refusals, found.refusals
    return combine(found, adapters, target)


def numbers(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def loaded(adapters: Sequence[Path], model: nn.Module | None = None) -> PeftModel:
    """One PEFT model that holds every adapter, in float64, by the names "0", "1" …"""
    adapted = PeftModel.from_pretrained(
        model or small(), adapters[0], adapter_name="0", autocast_adapter_dtype=False, torch_device="cpu"
    )
    for place, folder in enumerate(adapters[1:], 1):
        adapted.load_adapter(folder, adapter_name=str(place), autocast_adapter_dtype=False, torch_device="cpu")
    return adapted.double().eval()


def by_peft(adapters: Sequence[Path], kind: str, weights_: Sequence[float], **how: Any) -> dict[str, Tensor]:
    """A and B of `add_weighted_adapter`, by the keys of a saved adapter."""
    adapted = loaded(adapters)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # else PEFT rounds the weights to float32
    try:
        names = [str(place) for place in range(len(adapters))]
        adapted.add_weighted_adapter(names, list(weights_), "sum", combination_type=kind, **how)
    finally:
        torch.set_default_dtype(usual)
    return {
        name.replace(".sum", ""): value.double()
        for name, value in adapted.state_dict().items()
        if "lora_" in name and ".sum" in name
    }


def deltas(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """B·A by module, convolutions as matrices."""
    found = {}
    for key, a in tensors.items():
        for one, other in (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")):
            if key.endswith(one):
                b = tensors[key.removesuffix(one) + other]
                found[key.removesuffix("." + one)] = b.flatten(1) @ a.flatten(1)
    return found


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of adapter_config.json."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of an adapter, in place."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
