"""Layouts that were published and that save_pretrained no longer writes, rewritten by hand and held to from_pretrained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoint.reading import Checkpoint, rewrite
from tests.checkpoint.test_locations import as_peft_sees_it, assert_all_found, loaded, saved

Rename = Callable[[str], str]


def dropped(prefix: str) -> Rename:
    return lambda key: key.removeprefix(prefix)


def replaced(*pairs: tuple[str, str]) -> Rename:
    def rename(key: str) -> str:
        for old, new in pairs:
            key = key.replace(old, new, 1)
        return key

    return rename


TOWER = ("vision_tower.", "vision_tower.vision_model.")
MODEL_FIRST = (("language_model.model.", "model.language_model."), ("language_model.lm_head", "lm_head"))
PROJECTOR_INSIDE = ("multi_modal_projector.", "model.multi_modal_projector.")
TOWER_INSIDE = ("vision_tower.", "model.vision_tower.vision_model.")
NEWLINE_INSIDE = ("image_newline", "model.image_newline")

# (architecture, what the layout is, its keys from those that save_pretrained writes)
LAYOUTS = [
    ("gpt2", "without the prefix", dropped("transformer.")),
    ("bloom", "without the prefix", dropped("transformer.")),
    ("opt", "without the prefix", dropped("model.")),
    ("llama", "of the bare model", dropped("model.")),
    ("bert", "with gamma and beta", replaced(("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))),
    ("bert-encoder", "of the model with a head", lambda key: "bert." + key),
    ("vit-encoder", "of the model with a head", lambda key: "vit." + key),
    ("dinov2", "of the model with a head", lambda key: "dinov2." + key),
    ("mixtral", "of the bare model", dropped("model.")),
    ("qwen3_moe", "of the bare model", dropped("model.")),
    ("gemma3-vlm", "of transformers 4.50", replaced(TOWER)),
    ("gemma3-vlm", "of transformers 4.52", replaced(*MODEL_FIRST, TOWER_INSIDE, PROJECTOR_INSIDE)),
    ("paligemma", "of transformers 4.50", replaced(TOWER)),
    ("paligemma", "of transformers 4.52", replaced(*MODEL_FIRST, TOWER_INSIDE, PROJECTOR_INSIDE)),
    ("llava", "of transformers 4.50", replaced(TOWER)),
    ("llava", "of transformers 4.52", replaced(*MODEL_FIRST, TOWER_INSIDE, PROJECTOR_INSIDE)),
    ("llava_next", "of transformers 4.50", replaced(TOWER)),
    ("llava_next", "of transformers 4.52", replaced(*MODEL_FIRST, TOWER_INSIDE, PROJECTOR_INSIDE, NEWLINE_INSIDE)),
    ("internvl", "of transformers 4.52", replaced(*MODEL_FIRST, ("vision_tower.", "model.vision_tower."), PROJECTOR_INSIDE)),
    ("mllama", "of transformers 4.52", replaced(*MODEL_FIRST, ("vision_model.", "model.vision_model."), PROJECTOR_INSIDE)),
    ("qwen2_vl", "of transformers 4.52", replaced(("model.", "model.language_model."), ("visual.", "model.visual."))),
    ("qwen2_5_vl", "of transformers 4.52", replaced(("model.", "model.language_model."), ("visual.", "model.visual."))),
]  # fmt: skip


def written(name: str, folder: Path, rename: Rename) -> tuple[Path, dict[str, str]]:
    """(the folder with the checkpoint rewritten, {key in that layout: key that save_pretrained gave it})."""
    saved(name, folder)
    tensors = load_file(folder / "model.safetensors")
    keys = {rename(key): key for key in tensors}
    assert len(keys) == len(tensors)
    assert keys.keys() != tensors.keys(), "the layout is the one that is saved anyway"
    rewrite(folder, {key: tensors[old] for key, old in keys.items()})
    return folder, keys


@pytest.mark.parametrize(("name", "layout", "rename"), LAYOUTS, ids=[f"{name} {layout}" for name, layout, _ in LAYOUTS])
def test_a_published_layout_is_read_as_transformers_reads_it(
    name: str, layout: str, rename: Rename, tmp_path: Path
) -> None:
    plain = loaded(name, saved(name, tmp_path / "plain"))
    folder, _ = written(name, tmp_path / "base", rename)
    model = loaded(name, folder)
    for key, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), f"transformers does not read {layout}: {key}"
    assert_all_found(Checkpoint(folder), model)


@pytest.mark.parametrize(("name", "layout", "rename"), LAYOUTS, ids=[f"{name} {layout}" for name, layout, _ in LAYOUTS])
def test_an_adapter_of_one_age_fits_a_base_of_another(name: str, layout: str, rename: Rename, tmp_path: Path) -> None:
    """Names as one layout has them, numbers as the other stores them: both ways round, and in transformers 5's own."""
    folder, keys = written(name, tmp_path / "base", rename)
    there = Checkpoint(folder)
    usual = Checkpoint(saved(name, tmp_path / "usual"))
    new = Checkpoint(saved(name, tmp_path / "new", save_original_format=False))
    for base, names in ((there, keys.values()), (usual, keys.keys()), (new, keys.keys())):
        found = base.names.find(list(names))
        assert not found.missing
        assert not found.unmergeable
        for spelled, placement in found.placements.items():
            expected = usual.tensors[keys.get(spelled, spelled)]
            together = base.put_together(placement)
            assert sorted(together.flatten().tolist()) == sorted(expected.flatten().tolist()), spelled


def test_expert_stacks_published_in_by_out_are_transposed_as_transformers_transposes_them(tmp_path: Path) -> None:
    """Qwen3-VL-MoE: published E×H×2I and E×I×H, held in memory as E×2I×H and E×H×I."""
    saved("qwen3_vl_moe", tmp_path)
    tensors = {
        key: tensor.transpose(1, 2) if ".experts." in key else tensor
        for key, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    rewrite(tmp_path, tensors)
    model = loaded("qwen3_vl_moe", tmp_path)
    checkpoint = Checkpoint(tmp_path)
    assert_all_found(checkpoint, model)
    stacks = [name for name, _ in model.named_parameters() if ".experts." in name]
    assert stacks
    for name in stacks:
        placement = checkpoint.names.find([name]).placements[name]
        assert all(rectangle.transposed for rectangle in placement.rectangles)
        assert not placement.transposed


def test_a_text_adapter_fits_a_vision_language_base(tmp_path: Path) -> None:
    """An adapter of Gemma3ForCausalLM says model.layers, the base says (model.)language_model.(model.)layers."""
    for published in (True, False):
        folder = saved("gemma3-vlm", tmp_path / str(published), save_original_format=published)
        model, checkpoint = loaded("gemma3-vlm", folder), Checkpoint(folder)
        text = [name for name, _ in model.named_parameters() if name.startswith("model.language_model.layers.")]
        asked = {name.replace("model.language_model.", "model."): name for name in text}
        found = checkpoint.names.find(list(asked))
        assert not found.missing
        for spelled, name in asked.items():
            assert torch.equal(checkpoint.put_together(found.placements[spelled]), as_peft_sees_it(model, name))


def test_experts_lie_in_slices_that_never_span_a_whole_stack(tmp_path: Path) -> None:
    """Memory: a merge goes expert by expert, in either layout."""
    for published in (True, False):
        checkpoint = Checkpoint(saved("mixtral", tmp_path / str(published), save_original_format=published))
        name = "model.layers.1.mlp.experts.gate_up_proj"
        placement = checkpoint.names.find([name]).placements[name]
        assert placement.experts == 4
        assert len(placement.rectangles) == (8 if published else 4)
        assert {
            rectangle.key.startswith("model.layers.1.block_sparse_moe.experts.") for rectangle in placement.rectangles
        } == {published}
        assert sum(rectangle.out[1] - rectangle.out[0] for rectangle in placement.rectangles) == 4 * 128
