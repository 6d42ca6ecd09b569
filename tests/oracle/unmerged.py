"""PEFT's unmerged model in float64: what every merge is held to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.factory import ALL_ARCHITECTURES, model_inputs, outputs


def load(name: str, folder: Path, auto: str | None = None) -> Any:
    """A saved model in float64; experts are computed one by one, since the fused kernels know no float64."""
    chosen = getattr(transformers, auto or ALL_ARCHITECTURES[name].auto)
    model = chosen.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model.to(torch.float64).eval()


def unmerged(name: str, base: Path, adapter: Path, auto: str | None = None) -> Any:
    """The base with the adapter beside it, both in float64."""
    from peft import PeftModel

    model = load(name, base, auto)
    return PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).to(torch.float64).eval()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ ÷ ‖b‖."""
    return float((a - b).norm() / b.norm())


def assert_same_answers(name: str, base: Path, adapter: Path, merged: Path, *, closeness: float = 2e-6) -> None:
    """The merged folder answers as the unmerged model does, which does not answer as the base does."""
    inputs = model_inputs(name)
    with_adapter = unmerged(name, base, adapter)
    expected = outputs(with_adapter, inputs)
    with with_adapter.disable_adapter():
        plain = outputs(with_adapter, inputs)
    assert distance(plain, expected) > 1e-3, "the adapter does nothing, so this test could not fail"
    assert distance(outputs(load(name, merged), inputs), expected) < closeness
