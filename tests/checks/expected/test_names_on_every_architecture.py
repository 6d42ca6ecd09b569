"""The verifier's own naming, held to the truth: the key it finds must hold the very numbers that the module loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from bot.checks.expected.parameter_names import by_names
from bot.checks.reading.folders import read_json
from bot.checks.reading.model_skeleton import Skeleton, build, model_class
from bot.checks.reading.symbolic import SymbolicTensor
from tests.factory import ARCHITECTURES, save_base


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_is_found_under_the_key_that_it_is_loaded_from(tmp_path: Path, name: str):
    save_base(name, tmp_path, dtype=torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    model = getattr(transformers, ARCHITECTURES[name].auto).from_pretrained(tmp_path, dtype=torch.float32)
    shapes = {key: tuple(value.shape) for key, value in stored.items()}
    chosen = model_class(read_json(tmp_path / "config.json") or {}, False)
    skeleton = Skeleton(build(tmp_path, chosen, False), shapes)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert not skeleton.unfollowed
    assert parameters.keys() - skeleton.symbolic.keys() <= skeleton.tied.keys(), (
        "only what is tied has no key of its own"
    )
    for path, symbolic in skeleton.symbolic.items():
        assert torch.equal(gathered(symbolic, stored), model.state_dict()[path]), path
    linears = [path.removesuffix(".weight") for path in skeleton.key_of if path.endswith(".weight")]
    guessed = by_names(linears, stored)
    assert guessed is None or all(skeleton.key_of[f"{path}.weight"] == key for path, key in guessed.items())


def gathered(symbolic: SymbolicTensor, stored: dict[str, torch.Tensor]) -> torch.Tensor:
    """The numbers that a SymbolicTensor speaks of, put together."""
    found = torch.full(tuple(symbolic.shape), torch.nan, dtype=torch.float32)
    for block in symbolic.blocks:
        part = stored[block.key][tuple(slice(*span) for _, *span in block.source)]
        order = [at for at, *_ in block.source if at is not None]
        part = part.reshape(
            [extent for extent, (at, *_) in zip(part.shape, block.source, strict=True) if at is not None]
        )
        part = part.permute([order.index(at) for at in sorted(order)])
        found[tuple(slice(low, high) for low, high in block.box)] = part.reshape(
            [high - low for low, high in block.box]
        )
    return found


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
