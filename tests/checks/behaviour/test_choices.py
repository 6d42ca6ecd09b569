"""Routers' choices: noted, imposed on another model, and counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bot.checks.behaviour.expert_choices import Choices, is_mixture


class TopkRouter(nn.Module):
    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = torch.topk(logits.softmax(-1), 2, dim=-1)
        return values, indices


class Top1Router(nn.Module):
    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return logits.max(dim=-1).values, logits.argmax(dim=-1)


class Attention(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.max(dim=-1, keepdim=True).values


def seen(model: nn.Module, logits: Tensor, given: list[Tensor] | None = None):
    choices = Choices(given)
    with choices.along(model):
        found = model(logits)
    return found, choices


ONE, OTHER = torch.tensor([[0.0, 1.0, 3.0, 2.0]]), torch.tensor([[0.0, 2.1, 3.0, 2.0]])


def test_the_choice_is_held_and_the_weights_are_the_models_own():
    (_, indices), first = seen(TopkRouter(), ONE)
    assert indices.tolist() == [[2, 3]]
    (values, held), second = seen(TopkRouter(), OTHER, first.made)
    assert held.tolist() == [[2, 3]]
    assert torch.equal(values, OTHER.softmax(-1)[:, [2, 3]])
    assert (second.count, second.flipped, second.free) == (2, 1, 0)


def test_the_same_experts_in_another_order_are_no_flip():
    _, first = seen(TopkRouter(), ONE)
    _, second = seen(TopkRouter(), torch.tensor([[0.0, 1.0, 2.0, 3.0]]), first.made)
    assert second.flipped == 0


def test_the_one_largest_is_held_too():
    _, first = seen(Top1Router(), ONE)
    (values, held), second = seen(Top1Router(), torch.tensor([[9.0, 1.0, 3.0, 2.0]]), first.made)
    assert (values.tolist(), held.tolist()) == ([3.0], [2])
    assert (second.count, second.flipped) == (2, 2)


def test_a_maximum_that_chooses_nothing_is_let_be():
    _, choices = seen(Attention(), ONE)
    assert choices.made == []


def test_what_has_another_shape_is_counted_as_free():
    _, first = seen(TopkRouter(), ONE)
    (_, indices), second = seen(TopkRouter(), OTHER.repeat(2, 1), first.made)
    assert indices.tolist() == [[2, 1], [2, 1]]
    assert (second.count, second.free) == (0, 1)


def test_a_mixture_is_known_by_its_parts():
    assert is_mixture(nn.Sequential(TopkRouter()))
    assert not is_mixture(nn.Sequential(Attention()))
