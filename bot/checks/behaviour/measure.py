"""How far two models' outputs lie apart, and the arithmetic that they are run in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bot.checks.behaviour.device import DEVICES, to_model
from bot.checks.behaviour.expert_choices import Choices
from bot.checks.behaviour.forward_counts import FORWARDS
from bot.checks.behaviour.job import Distance
from bot.checks.expected.float64_mode import float64_mode

CHUNK = 1 << 17  # logits that are compared at once, in float64: they stay in a processor's cache
MODERATE = 30.0  # logits that differ by less are compared without a look at what overflows
SERIES = 1e-3  # below this, four terms of a series are exact to float64
VOCABULARY = 32  # fewer classes than this carry too few degrees of freedom for a stable ratio


class ModelInFloat64(TorchFunctionMode):
    """float32 becomes float64 wherever a model asks for it by name (norms and softmax do, "for precision")."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(_wide(value) for value in args)
        return func(*args, **{name: _wide(value) for name, value in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def outputs(model: Any, inputs: dict[str, Tensor], compute: str, choices: Choices | None = None) -> tuple[str, Tensor]:
    """(kind, tensor): per-token logits, positions × vocabulary, where there are any; else the last hidden states. Computed where
    the model is, and brought to the processor."""
    wide = compute == "float64"
    caught = choices.along(model) if choices is not None else nullcontext()
    inputs = to_model(inputs, model)
    with torch.inference_mode(), float64_mode(ModelInFloat64()) if wide else nullcontext(), caught:
        answer = answered(model, inputs, compute)
        FORWARDS.ran()
        DEVICES.of(model)
    return answer


def answered(model: Any, inputs: dict[str, Tensor], compute: str) -> tuple[str, Tensor]:
    """The same, in whatever modes are in force."""
    if compute == "float64":
        inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    output = model(**inputs)
    logits = getattr(output, "logits", None)
    if logits is not None and logits.dim() == 3 and logits.shape[-1] >= VOCABULARY:
        return "kl", logits[0].contiguous().cpu()
    return "squared", _states(output, model, inputs).cpu()


def _states(output: Any, model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Hidden states have enough elements for a stable ratio; a classifier's two logits have not."""
    states = getattr(output, "last_hidden_state", None)
    if states is None:
        deep = model(**inputs, output_hidden_states=True)
        layers = getattr(deep, "hidden_states", None) or getattr(deep, "decoder_hidden_states", None)
        states = layers[-1] if layers else None
    if states is None:
        floats = [value for value in output.to_tuple() if isinstance(value, Tensor) and value.is_floating_point()]
        states = torch.cat([value.flatten() for value in floats]).view(1, 1, -1)
    return states.reshape(-1, states.shape[-1]).contiguous()


def distance(kind: str, wanted: Tensor, output: Tensor, choices: Choices | None = None) -> Distance:
    """KL(wanted ‖ found), or ‖found − wanted‖², at each position and summed; in float64."""
    return distances(kind, wanted, [output], choices)[0]


def distances(kind: str, wanted: Tensor, outputs: Sequence[Tensor], choices: Choices | None = None) -> list[Distance]:
    """The same of several outputs, each held to the one that is wanted."""
    best, size = wanted.argmax(-1, keepdim=True), float(torch.linalg.vector_norm(wanted, dtype=torch.float64)) ** 2
    counts = (choices.count, choices.flipped, choices.free) if choices else (0, 0, 0)
    if kind == "kl":
        far = _kl(wanted, outputs)
    else:
        far = [(output.double() - wanted.double()).square().sum(-1).tolist() for output in outputs]
    return [
        Distance(
            far=sum(tokens), tokens=tokens, positions=wanted.shape[0], size=size,
            agree=int((output.gather(-1, best) == output.amax(-1, keepdim=True)).sum()),
            choices=counts[0], changed_choices=counts[1], free=counts[2],
        )
        for tokens, output in zip(far, outputs, strict=True)
    ]  # fmt: skip


def next_token_loss(model: Any, inputs: dict[str, Tensor], logits: Tensor) -> tuple[float, int]:
    """(Σ −log p of the next token, how many) of a model that predicts it; (0, 0) of others."""
    ids = inputs.get("input_ids")
    causal = any(word in type(model).__name__ for word in ("CausalLM", "LMHead", "ForConditionalGeneration"))
    causal = causal and not getattr(model.config, "is_encoder_decoder", False)
    if ids is None or not causal or logits.shape[0] != ids.shape[1] or logits.shape[0] < 2:
        return 0.0, 0
    loss = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[0, 1:].long(), reduction="sum")
    return float(loss), ids.shape[1] - 1


def _kl(wanted: Tensor, outputs: Sequence[Tensor]) -> list[list[float]]:
    """Σ p·(log p − log q) at each position of each output, from the logits; free of that sum's cancellation, which at a float32
    merge (log q − log p ≈ 1e-9) returns noise, negative as often as not."""
    rows = max(1, CHUNK // wanted.shape[-1])
    far: list[list[float]] = [[] for _ in outputs]
    for low in range(0, wanted.shape[0], rows):
        p = wanted[low : low + rows].double()
        chance = p.softmax(-1)
        for own, output in zip(far, outputs, strict=True):
            own += _kl_of_rows(p, chance, output[low : low + rows].double())
    return far


def _kl_of_rows(p: Tensor, chance: Tensor, q: Tensor) -> list[float]:
    """KL = log Σ p·eᵡ with x = the difference of the logits, less its mean under p: then Σ p·x is nothing but what was
    rounded away, and the rest, eᵡ − 1 − x, is never negative. `chance`: softmax(p)."""
    apart = q - p
    least, most = torch.aminmax(apart)
    if not bool(least > -MODERATE and most < MODERATE):  # or NaN, or infinite
        return _kl_of_any(p, q)
    apart -= torch.linalg.vecdot(chance, apart).unsqueeze(-1)
    least, most = torch.aminmax(apart)
    if bool(least > -SERIES and most < SERIES):
        # x²/2 + x³/6 + x⁴/24 + x⁵/120, where eᵡ − 1 − x would cancel.
        half, sixth, fourth = (torch.tensor(1 / terms, dtype=apart.dtype, device=apart.device) for terms in (2, 6, 24))
        beyond = torch.add(fourth, apart, alpha=1 / 120)
        for term in (sixth, half):
            beyond = torch.addcmul(term, beyond, apart, out=beyond)
        beyond.mul_(apart).mul_(apart)
    else:
        beyond = torch.expm1(apart).sub_(apart)
    far: list[float] = torch.linalg.vecdot(beyond, chance).add_(torch.linalg.vecdot(apart, chance)).log1p_().tolist()
    return far


def _kl_of_any(p: Tensor, q: Tensor) -> list[float]:
    """The same where answers are ruled out, or as good as: Σ p·(eᵈ − 1 − d) with d = log q − log p. Where d is large, p·eᵈ is q,
    which does not overflow."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    # Of what p excludes only q is left: any d that is not small will do.
    d, chance = torch.where(log_p == -torch.inf, 1.0, log_q - log_p), log_p.exp()
    small = d.square() / 2 * (1 + d / 3 + d.square() / 12)
    far: list[float] = torch.where(d.abs() < 1e-3, chance * small, log_q.exp() - chance * (1 + d)).sum(-1).tolist()
    return far
