"""Ways to get a merge of the LoRA family wrong, planted in the exact numbers (float64, by the modules' own names)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from safetensors.torch import load_file

from tests.faults import family
from tests.faults.family import Kin, Tensors
from tests.faults.models import Built

Q0, Q1 = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class At:
    """What a fault needs to know: the base's tensors by the modules' names and the adapter's, widened."""

    def __init__(self, kin: Kin, built: Built) -> None:
        self.base = dict(family.plain_model(kin, built.base).state_dict())
        adapter = load_file(built.adapter / "adapter_model.safetensors")
        self.adapter = {key.removeprefix("base_model.model."): value.double() for key, value in adapter.items()}

    def delta(self, module: str, scaling: float = 1.5) -> torch.Tensor:
        """α/r · B·A, as a Linear has it."""
        return scaling * self.adapter[f"{module}.lora_B.weight"] @ self.adapter[f"{module}.lora_A.weight"]


def magnitude_ignored(at: At, exact: Tensors) -> None:
    exact[Q0] = at.base[Q0] + at.delta("model.layers.0.self_attn.q_proj")


def norm_ignored(at: At, exact: Tensors) -> None:
    value = at.base[Q0] + at.delta("model.layers.0.self_attn.q_proj")
    magnitude = at.adapter["model.layers.0.self_attn.q_proj.lora_magnitude_vector"]
    exact[Q0] = value * (magnitude / at.base[Q0].norm(dim=1))[:, None]  # the base's norm, not the sum's


def norm_along_the_other_axis(at: At, exact: Tensors) -> None:
    value = at.base[Q0] + at.delta("model.layers.0.self_attn.q_proj")
    exact[Q0] = value * at.adapter["model.layers.0.self_attn.q_proj.lora_magnitude_vector"] / value.norm(dim=0)


def embedding_norm_over_each_token(at: At, exact: Tensors) -> None:
    exact[EMBEDDING] = exact[EMBEDDING] * (exact[EMBEDDING].norm(dim=0) / exact[EMBEDDING].norm(dim=1)[:, None])


def embedding_transposed(at: At, exact: Tensors) -> None:
    exact[EMBEDDING] = at.base[EMBEDDING] + (exact[EMBEDDING] - at.base[EMBEDDING]).T


def left_as_it_was(*keys: str) -> Callable[[At, Tensors], None]:
    def leave(at: At, exact: Tensors) -> None:
        for key in keys:
            exact[key] = at.base[key].clone()

    return leave


def bias_unscaled(at: At, exact: Tensors) -> None:
    module = "encoder.layer.0.attention.self.query"
    exact[f"{module}.bias"] = at.base[f"{module}.bias"] + at.adapter[f"{module}.lora_B.bias"]


def row_shifted(at: At, exact: Tensors) -> None:
    rows = at.adapter["model.embed_tokens.token_adapter.trainable_tokens_delta"]
    for key in (EMBEDDING, HEAD):
        if key in exact:
            exact[key] = at.base[EMBEDDING].clone()
            exact[key][torch.tensor([8, 4, 121])] = rows


def token_rows_in_another_order(at: At, exact: Tensors) -> None:
    for key in (EMBEDDING, HEAD):
        if key in exact:
            exact[key][torch.tensor([7, 3])] = exact[key][torch.tensor([3, 7])]


def rows_added_instead_of_set(at: At, exact: Tensors) -> None:
    for key in (EMBEDDING, HEAD):
        if key in exact:
            exact[key][7] += at.base[EMBEDDING][7]


DOWN, GATE_UP = (f"model.layers.0.mlp.experts.{name}" for name in ("down_proj", "gate_up_proj"))


def experts_swapped(at: At, exact: Tensors) -> None:
    exact[DOWN][[0, 1]] = exact[DOWN][[1, 0]]


def an_experts_delta_transposed(at: At, exact: Tensors) -> None:
    exact[DOWN][2] = at.base[DOWN][2] + (exact[DOWN][2] - at.base[DOWN][2]).T


def experts_by_blocks_of_b(at: At, exact: Tensors) -> None:
    """B's columns cut as A's rows are, where they are interleaved."""
    a, b = (at.adapter[f"model.layers.0.mlp.experts.lora_{half}.weight"] for half in "AB")
    for expert in range(3):
        rows = slice(expert * 4, expert * 4 + 4)
        exact[DOWN][expert] = at.base[DOWN][expert] + 1.5 * b[:, rows] @ a[rows]


def second_rectangle_forgotten(at: At, exact: Tensors) -> None:
    half = exact[GATE_UP].shape[1] // 2
    exact[GATE_UP][1, half:] = at.base[GATE_UP][1, half:]


def gate_and_up_exchanged(at: At, exact: Tensors) -> None:
    delta = exact[GATE_UP][0] - at.base[GATE_UP][0]
    exact[GATE_UP][0] = at.base[GATE_UP][0] + delta.roll(delta.shape[0] // 2, dims=0)


def replica_of_another_layer(at: At, exact: Tensors) -> None:
    name = "model.layers.{}.self_attn.k_proj.weight"
    exact[name.format(2)] = at.base[name.format(0)].clone()  # layer 2 is made from layer 1


def replica_without_its_delta(at: At, exact: Tensors) -> None:
    exact["model.layers.2.self_attn.q_proj.weight"] = at.base[Q1].clone()


def replica_with_its_origins_delta(at: At, exact: Tensors) -> None:
    exact["model.layers.2.self_attn.q_proj.weight"] = exact[Q1].clone()


def head_changed_with_the_embedding(at: At, exact: Tensors) -> None:
    exact[HEAD] = exact[EMBEDDING].clone()  # what PEFT's own merge of a tied model does


def embedding_changed_with_the_head(at: At, exact: Tensors) -> None:
    exact[EMBEDDING] = exact[HEAD].clone()


def convolution_wrong_side_out(at: At, exact: Tensors) -> None:
    key = "vit.embeddings.patch_embeddings.projection.weight"
    exact[key] = at.base[key] + (exact[key] - at.base[key]).flip(-1)


def half_a_resized_head(at: At, exact: Tensors) -> None:
    exact[HEAD][160:] = 0.0


def saved_module_added_instead_of_set(at: At, exact: Tensors) -> None:
    exact["model.norm.weight"] = exact["model.norm.weight"] + at.base["model.norm.weight"]


WRONG: dict[str, tuple[str, Callable[[At, Tensors], None], tuple[str, ...]]] = {
    "a magnitude ignored": ("dora", magnitude_ignored, ("touched",)),
    "the norm of W instead of W + D": ("dora", norm_ignored, ("touched",)),
    "the norm along the wrong axis": ("dora", norm_along_the_other_axis, ("touched",)),
    "an embedding's norm over each token": ("dora-embedding", embedding_norm_over_each_token, ("touched",)),
    "lora_embedding transposed": ("square-embedding", embedding_transposed, ("touched",)),
    "a bias not replaced": ("biases", left_as_it_was("transformer.h.1.ln_1.bias"), ("touched", "coverage")),
    "lora_bias forgotten": (
        "lora-bias", left_as_it_was("encoder.layer.0.attention.self.query.bias"), ("touched", "coverage"),
    ),
    "lora_bias unscaled": ("lora-bias", bias_unscaled, ("touched",)),
    "tokens shifted by one": ("tokens-tied", row_shifted, ("touched",)),
    "tokens in another order": ("tokens-tied", token_rows_in_another_order, ("touched",)),
    "tokens taken for differences": ("tokens-tied", rows_added_instead_of_set, ("touched",)),
    "two experts swapped": ("experts", experts_swapped, ("touched",)),
    "two fused experts swapped": ("experts-fused", experts_swapped, ("touched",)),
    "an expert's delta transposed": ("experts-fused", an_experts_delta_transposed, ("touched",)),
    "a transposed expert's delta transposed": ("experts-transposed", an_experts_delta_transposed, ("touched",)),
    "B cut into blocks": ("experts-fused", experts_by_blocks_of_b, ("touched",)),
    "the second rectangle forgotten": ("experts-fused-in-older-names", second_rectangle_forgotten, ("touched",)),
    "gate and up exchanged": ("experts-fused-in-older-names", gate_and_up_exchanged, ("touched",)),
    "a replica made from another layer": ("replicated", replica_of_another_layer, ("untouched",)),
    "a replica without its delta": ("replicated", replica_without_its_delta, ("touched", "coverage")),
    "a replica with its origin's delta": ("replicated", replica_with_its_origins_delta, ("touched",)),
    "the head changed with the embedding": ("embedding-tied", head_changed_with_the_embedding, ("touched",)),
    "the embedding changed with the head": ("head-tied", embedding_changed_with_the_head, ("touched",)),
    "a saved embedding changes the head": (
        "whole-embedding-tied", head_changed_with_the_embedding, ("untouched", "coverage"),
    ),
    "a saved module ignored": ("whole-embedding-and-norm", left_as_it_was("model.norm.weight"), ("touched", "coverage")),
    "a saved module added": ("whole-embedding-and-norm", saved_module_added_instead_of_set, ("touched",)),
    "a convolution's kernel mirrored": ("convolution", convolution_wrong_side_out, ("touched",)),
    "new rows left empty": ("resized", half_a_resized_head, ("touched",)),
    "a router forgotten": ("router", left_as_it_was("model.layers.0.mlp.gate.weight"), ("touched", "coverage")),
}  # fmt: skip
