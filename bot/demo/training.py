"""Training a very small model on very few tokens, on a CPU: Muon for the matrices, AdamW for the rest, one fast decay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bot.checks.behaviour.one_thread import one_thread

Progress = Callable[[str, int, int], None]
"""Told what is being trained, the step just done, and the number of steps."""

ADAM_RATE = 0.016
WARMUP = 10  # steps


@dataclass(frozen=True, kw_only=True)
class Course:
    """One training: what is trained, for how many steps, and the peak learning rate of its matrices."""

    what: str
    steps: int
    muon_rate: float
    progress: Progress | None


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    On two hundred thousand tokens it reaches a loss of 2.0 where AdamW ends at 4.8. torch.optim.Muon always works in bfloat16,
    which takes twenty times as long on a processor without bfloat16 instructions.
    """

    def __init__(self, matrices: list[nn.Parameter], rate: float) -> None:
        super().__init__(matrices, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix from its gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 0.1)
                update = _orthogonal(matrix.grad.lerp(momentum, 0.9))
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - 0.1 * group["lr"]).add_(update, alpha=-group["lr"] * scale)


@one_thread()
def train(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], course: Course) -> float:
    """Train on (input_ids, labels) batches, int64 (sequences, tokens); returns the mean loss of the last tenth of the steps."""
    optimizers = _optimizers(model, course.muon_rate)
    losses: list[float] = []
    model.train()
    for step in range(course.steps):
        for optimizer, rate in optimizers:
            optimizer.param_groups[0]["lr"] = rate * _schedule(step, course.steps)
        input_ids, labels = next(batches)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_native_bfloat16()):
            loss = model(input_ids=input_ids, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
        if course.progress:
            course.progress(course.what, step + 1, course.steps)
    model.eval()
    last = losses[-max(1, course.steps // 10) :]
    return sum(last) / len(last)


def has_native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware; emulated, they are slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _optimizers(model: nn.Module, muon_rate: float) -> list[tuple[torch.optim.Optimizer, float]]:
    """Each optimizer with its peak learning rate; the embedding is a table, not a map, so AdamW takes it."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in trained if p.ndim != 2 or "embed" in name]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [(Muon(matrices, muon_rate), muon_rate)]
    if rest:
        optimizers.append((torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0), ADAM_RATE))
    return optimizers


def _schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate at a step: a short warm-up, a plateau, then straight down to zero."""
    return min(1.0, (step + 1) / WARMUP, (1 - step / steps) / 0.8)


def _orthogonal(update: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: five Newton-Schulz steps with the coefficients of the Muon post."""
    wide = update if update.shape[0] <= update.shape[1] else update.T
    x: Tensor = wide / (wide.norm() + 1e-7)
    if has_native_bfloat16():
        x = x.bfloat16()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x if wide is update else x.T).to(update.dtype)
