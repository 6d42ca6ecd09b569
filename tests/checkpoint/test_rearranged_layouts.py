"""Tensors that transformers deals out anew on load, rows of heads or of pairs: merger and verifier follow every number.

Both are held to what `from_pretrained` makes of a checkpoint in which every element is another number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import core_model_loading

from bot.checkpoint import layouts
from bot.checkpoint.conversions import known
from bot.checks.reading.model_skeleton import Skeleton
from tests.checkpoint.reading import Checkpoint, number
from tests.checkpoint.test_locations import assert_all_found
from tests.checks.expected.test_names_on_every_architecture import gathered
from tools.small_models import class_of, config_of, empty

# PermuteForRope, alone and after Chunk; Split; Interleave of stacks, and with Chunk; Ernie's two kinds of experts; and
# projections that are kept in one tensor.
REARRANGED = (
    "kimi_k25",
    "mistral_large4",
    "step3p7",
    "molmo2",
    "inkling2",
    "inkling_mm_model",
    "ernie4_5_vl_moe",
    "radio",
)


def saved(model_type: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model = getattr(transformers, str(class_of(model_type)))(config_of(model_type))
    number(model)
    model.save_pretrained(folder)
    return folder


def loaded(model_type: str, folder: Path) -> Any:
    return getattr(transformers, str(class_of(model_type))).from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("model_type", REARRANGED)
def test_every_parameter_is_put_together_from_the_checkpoint_by_both(model_type: str, tmp_path: Path) -> None:
    model = loaded(model_type, saved(model_type, tmp_path))
    checkpoint = Checkpoint(tmp_path)
    assert_all_found(checkpoint, model)
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint.tensors.items()}
    skeleton = Skeleton(empty(model_type), shapes)
    assert not skeleton.unfollowed
    held = model.state_dict()
    for path, symbolic in skeleton.symbolic.items():
        assert torch.equal(gathered(symbolic, checkpoint.tensors), held[path]), path


def test_every_operation_of_transformers_is_followed_or_refused_by_name() -> None:
    """A new transformers with a new operation fails here: say how it is followed, or that it is refused."""
    written = {name for one in known()["lists"] for row in one if len(row) > 2 and isinstance(row[2], list)
               for name, _ in row[2]}  # fmt: skip
    assert written <= layouts.OPERATIONS.keys()
    existing = {
        name
        for name, one in vars(core_model_loading).items()
        if isinstance(one, type) and issubclass(one, core_model_loading.ConversionOps)
    }
    # The reverse of another one, which only saving uses; and what no published layout needs.
    elsewhere = {"ConversionOps", "_IdentityOp", "SplitModulelist", "ErnieSplitAndDecoupleTextVisionExperts"}
    unused = {"Conv3dToLinear", "LinearToConv3d", "VisionFuseAndPermuteForRope", "VisionUnfuseAndPermuteForRope"}
    assert existing == layouts.OPERATIONS.keys() | elsewhere | unused


SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA on rotary heads, with biases": ("kimi_k25", {"target_modules": r".*vision_tower.*attn\.(q|k)_proj", "lora_bias": True}),
    "DoRA on rotary heads": ("kimi_k25", {"target_modules": r".*vision_tower.*attn\.(q|k|v)_proj", "use_dora": True}),
    "LoRA on one of three split projections": ("molmo2", {"target_modules": r".*language_model.*k_proj"}),
    "LoRA on interleaved experts": (
        "inkling_mm_model",
        {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "shared_experts.up_proj"]},
    ),
    "LoRA on two kinds of experts": (
        "ernie4_5_vl_moe", {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", SETTINGS)
def test_a_merge_is_pefts_own_and_is_proven(way: str, tmp_path: Path) -> None:
    from tests.oracle.one_architecture import adapted, furthest, proven
    from tests.steps import merge_folders

    model_type, settings = SETTINGS[way]
    base = saved_small(model_type, tmp_path / "base")
    tuned = adapted(loaded(model_type, base), tmp_path / "adapter", **settings)
    merge_folders(base, tmp_path / "adapter", tmp_path / "merged")
    before = dict(loaded(model_type, base).named_parameters())
    theirs = dict(tuned.merge_and_unload().named_parameters())
    assert furthest(before, theirs), "the adapter does nothing, so this test could not fail"
    assert not furthest(dict(loaded(model_type, tmp_path / "merged").named_parameters()), theirs)
    assert not proven(tmp_path)


def saved_small(model_type: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model = getattr(transformers, str(class_of(model_type)))(config_of(model_type))
    model.save_pretrained(folder)
    return folder
