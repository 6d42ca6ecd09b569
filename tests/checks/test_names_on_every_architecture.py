"""The verifier's own naming, held to the truth: the key it finds must hold the very numbers that the module loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from bot.checks.case import read_json
from bot.checks.naming import by_names
from bot.checks.skeleton import build_skeleton
from tests.factory import ARCHITECTURES, save_base


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_is_found_under_the_key_that_it_is_loaded_from(tmp_path: Path, name: str):
    save_base(name, tmp_path, dtype=torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    model = getattr(transformers, ARCHITECTURES[name].auto).from_pretrained(tmp_path, dtype=torch.float32)
    linears = {path: one for path, one in model.named_modules() if isinstance(one, torch.nn.Linear | Conv1D)}
    skeleton = build_skeleton(tmp_path, read_json(tmp_path / "config.json") or {}, sorted(stored), False)
    assert skeleton.problem is None
    tied = {path for path in linears if path not in skeleton.key_of and path not in skeleton.fused}
    assert tied <= {
        "lm_head",
        "cls.predictions.decoder",
        "vocab_projector",
        "generator_lm_head",
        "lm_head.decoder",
        "proj_out",
    }
    for path, key in skeleton.key_of.items():
        if path in linears:
            assert torch.equal(stored[key], linears[path].weight)
            assert (key in skeleton.in_by_out) == isinstance(linears[path], Conv1D)
    guessed = by_names([path for path in linears if path in skeleton.key_of], stored)
    assert guessed is None or all(skeleton.key_of[path] == key for path, key in guessed.items())


def test_two_towers_of_the_same_shape_are_never_guessed_between():
    keys = [f"{tower}.layers.0.q_proj.weight" for tower in ("text", "vision")]
    assert by_names(["layers.0.q_proj"], keys) is None
    assert by_names(["text.layers.0.q_proj"], keys) == {"text.layers.0.q_proj": keys[0]}


def test_one_prefix_must_explain_every_module():
    keys = ["h.0.c_attn.weight", "lm_head.weight"]
    assert by_names(["transformer.h.0.c_attn"], keys) == {"transformer.h.0.c_attn": "h.0.c_attn.weight"}
    assert by_names(["transformer.h.0.c_attn", "lm_head"], keys) is None


def test_a_prefix_that_only_the_checkpoint_has_is_added():
    keys = ["language_model.model.layers.0.q_proj.weight", "vision.patch.weight"]
    assert by_names(["model.layers.0.q_proj"], keys) == {"model.layers.0.q_proj": keys[0]}


def test_layers_are_not_confused_by_their_numbers():
    keys = ["model.layers.1.q_proj.weight", "model.layers.11.q_proj.weight"]
    assert by_names(["layers.1.q_proj"], keys) == {"layers.1.q_proj": keys[0]}
