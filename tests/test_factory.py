"""The tiny models are real ones: they save, load to the same numbers, and answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from tests.factory import ALL_ARCHITECTURES, LOADING, build, model_inputs, outputs, save_base


@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_a_tiny_model_survives_saving_and_answers(name: str, tmp_path: Path) -> None:
    save_base(name, tmp_path, dtype=torch.float32)
    auto = getattr(transformers, ALL_ARCHITECTURES[name].auto)
    loaded = auto.from_pretrained(tmp_path, dtype=torch.float64, **LOADING).eval()
    built = build(name).double()
    answer = outputs(loaded, model_inputs(name))
    assert torch.isfinite(answer).all()
    assert answer.std() > 0
    for (key, one), other in zip(loaded.state_dict().items(), built.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
