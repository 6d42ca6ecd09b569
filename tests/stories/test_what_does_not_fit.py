"""Adapter tensors that do not fit: each cause has its own words, and only another base's size sends people to another base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bot.adapters.lora import LoraPair
from bot.checkpoint.rectangles import whole_placement
from bot.plan.patches import Misfit, PairSettings, patches_of
from bot.records import Refusal, Stored
from tests.factory import save_adapter, save_base
from tests.steps import plan_folders

Change = Callable[[str, Tensor], Tensor]
EMPTY = torch.zeros(0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = {"target_modules": ["gate_proj", "q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    return save_adapter(base, "llama", tmp_path_factory.mktemp("adapter"), **more)


def refusals(base: Path, adapter: Path, folder: Path, change: Change) -> list[Refusal]:
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    tensors = load_file(adapter / "adapter_model.safetensors")
    changed = {key: change(key, value).contiguous() for key, value in tensors.items()}
    save_file(changed, folder / "adapter_model.safetensors")
    return list(plan_folders(base, folder).refusals)


@pytest.mark.parametrize("held", ["lora", "lm_head", "lora_A", ""])
def test_empty_tensors_were_not_gathered(held: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    (found,) = refusals(base, adapter, tmp_path / "a", lambda key, value: EMPTY if held in key else value)
    assert found.code == "not-gathered"
    assert "gathered" in found.remedy
    assert "--base" not in found.remedy


def test_exchanged_sides_are_said_to_be_exchanged(base: Path, adapter: Path, tmp_path: Path) -> None:
    def other_way_round(key: str, value: Tensor) -> Tensor:
        if "gate_proj.lora_A" in key:
            return torch.zeros(4, 128)
        return torch.zeros(64, 4) if "gate_proj.lora_B" in key else value

    (found,) = refusals(base, adapter, tmp_path / "a", other_way_round)
    assert found.code == "transposed"
    assert "--base" not in found.remedy


def test_another_size_is_another_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    wide = refusals(
        base, adapter, tmp_path / "a", lambda key, value: torch.zeros(4, 96) if "q_proj.lora_A" in key else value
    )
    assert [one.code for one in wide] == ["shape"]
    assert "--base" in wide[0].remedy


def test_a_convolution_with_more_groups_than_ranks_is_grouped_not_of_another_base() -> None:
    """Mamba's conv1d: PEFT's B has no column at all then."""

    def stored(key: str, *shape: int) -> Stored:
        return Stored(key=key, file="f", dtype="F32", shape=shape, start=0, stop=0)

    weight = stored("conv1d.weight", 128, 1, 4)
    pair = LoraPair(module="conv1d", kind="linear", a=stored("A", 4, 128, 4), b=stored("B", 128, 0, 1))
    place = whole_placement("conv1d.weight", weight, transposed=False)
    with pytest.raises(Misfit) as found:
        patches_of(pair, place, {weight.key: weight}, PairSettings(rank=4, alpha=8.0, scaling=2.0))
    assert found.value.code == "conv-groups"
