"""Reports as they may come: whole ones, of every kind and size, made without a model."""

from __future__ import annotations

import math
from typing import Any

from bot.report_document import Document

SHA = "0123456789abcdef" * 4
LLAMA = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
EXPERTS = ["block_sparse_moe.gate", *(f"block_sparse_moe.experts.w{number}" for number in (1, 2, 3))]


def check(
    id: str, status: str = "pass", measured: str = "all", why: str = "As it should be.", *worst: str
) -> dict[str, Any]:
    return {"id": id, "group": "weights", "status": status, "measured": measured, "allowed": "all", "why": why,
            "worst": list(worst), "seconds": 0.1}  # fmt: skip


CHECKS = [
    check("headers", measured="4 files"), check("pickles", measured="none"), check("license", "warn", "1 remark"),
    check("touched", measured="0 of 357,826,560 differ"), check("untouched", measured="0 of 136,134,656 differ"),
    check("coverage", measured="196 of 196 tensors"), check("keys", measured="290 keys"), check("retention", measured="0.987"),
    check("behaviour", measured="K = 0.53 ± 0.02"),
]  # fmt: skip


def delta(layers: int, modules: list[str]) -> list[dict[str, Any]]:
    """Numbers that differ from cell to cell, the same in each run."""
    rows = []
    for layer in range(layers):
        for at, module in enumerate(modules):
            wave = 1.5 + math.sin(0.7 * layer + 1.3 * at)
            rows.append(
                {"layer": layer, "module": module, "tensors": 1, "relative": 0.004 * wave, "retention": 1 - 0.01 * wave}
            )
    return rows


def prompts(count: int = 8) -> list[dict[str, Any]]:
    return [
        {"tokens": 60 + at, "adapter": 0.3 + 0.01 * at, "control": 4e-6, "merged": 2e-6 * (1 + at / 9)}
        for at in range(count)
    ]


def probe(layers: int, fault: int = 10**9) -> list[dict[str, Any]]:
    """A merge that leaves the control behind from the layer `fault` on."""
    names = ["model.embed_tokens", *(f"model.layers.{layer}" for layer in range(layers)), "model.norm", "lm_head"]
    return [
        {"module": name, "control": 1e-6 * at, "merged": 6e-7 * at * (1000 if at > fault else 1)}
        for at, name in enumerate(names)
    ]


ANSWERS = [
    {"prompt": "Say something of the sea.", "base": "The sea is vast.", "unmerged": "Arr, the sea!", "merged": "Arr, the sea!"},
    {"prompt": "What is two plus three?", "base": "Five.", "unmerged": "Five it be.", "merged": "Five it is."},
    {"prompt": "Name three colours.", "base": "1. Red\n2. Blue\n3. Green", "unmerged": "Red!\nGold!", "merged": "Red!\nGold!"},
]  # fmt: skip
COMPARISON = [
    {"id": "as-trained", "what": "as trained: the quantised base with the adapter", "bytes": 401234567, "published": False,
     "kl_ratio": 0.0, "perplexity": 7.123, "top1_agreement": 1.0},
    {"id": "original-merged", "what": "merged into the 16-bit original", "bytes": None, "published": False,
     "not_run": "the 16-bit model that the base was made from is not at hand"},
    {"id": "re-quantised", "what": "merged, then stored as nf4", "bytes": 412345678, "published": True, "kl_ratio": 0.0213,
     "perplexity": 7.31, "top1_agreement": 0.953},
]  # fmt: skip
WHOLE: dict[str, Any] = {
    "schema": 1,
    "subject": {"files": {"config.json": SHA, "model-00001-of-00002.safetensors": SHA}},
    "inputs": {"base": {"repo": "bob/base", "sha": SHA[:40], "revision": "main"},
               "adapter": {"repo": "alice/lora", "sha": SHA[:40], "revision": "v1.0"}, "recipe": "exact-1"},
    "environment": {"adapter-merge": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "bitsandbytes": None},
    "merge": {"method": "LoRA", "engine": "streaming", "dtype": "bfloat16", "fingerprint": SHA, "ranks": [16], "scalings": [2.0],
              "options": {"dtype": "auto", "quantize": "none", "overflow": "clamp"}, "tensors": {"merged": 196, "copied": 94},
              "target": "alice/lora-merged", "tag": "v1.0"},
    "checks": CHECKS,
    "noise_floor": {"metric": "KL, nats per token", "floor": 3.9e-6, "merged": 2.1e-6, "adapter": 0.31, "ratio": 0.53,
                    "limit": 1.19, "standard_error": 0.02, "controls": 8, "positions": 1024, "top1_agreement": 0.9985},
    "not_run": [],
    "verdict": "verified",
    "delta": [*delta(28, LLAMA), {"layer": None, "module": "lm_head", "tensors": 1, "relative": 0.01, "retention": 0.9}],
    "prompts": prompts(),
    "probe": probe(28),
    "answers": ANSWERS,
}  # fmt: skip
CAUSE = {"kind": "factor", "sentence": "the delta was scaled by 0.5 in 1 of 196 tensors.",
         "tensors": ["model.layers.0.self_attn.q_proj.weight"], "figures": {"slope": 0.5003}}  # fmt: skip
BROKEN = [check("touched", "fail", "959 of 357,826,560 differ", "1 tensor is not base plus adapter, rounded once.",
                "model.layers.0.self_attn.q_proj.weight: 959 of 802,816 differ"), *CHECKS[:3]]  # fmt: skip


def sample(**changes: Any) -> Document:
    """The whole report with other fields."""
    return Document.of(WHOLE | changes)


def without(*names: str, **changes: Any) -> Document:
    """The whole report without these fields."""
    return Document.of({name: value for name, value in (WHOLE | changes).items() if name not in names})


FAILED = sample(verdict="not-verified", checks=BROKEN, cause=CAUSE, probe=probe(28, fault=11))
QUANTISED = without("delta", "prompts", "probe", "answers", "noise_floor", comparison=COMPARISON)
HUGE = sample(delta=delta(126, [*LLAMA, *EXPERTS]), probe=probe(126), prompts=prompts(32))
NOTHING_RUN = without(
    "delta", "prompts", "probe", "answers", "noise_floor",
    checks=CHECKS[:3],
    not_run=[{"id": "weights", "reason": "--verify files was asked for"}, {"id": "full", "reason": "--verify files was asked for"}],
)  # fmt: skip
SAMPLES = {
    "whole": sample(),
    "failed": FAILED,
    "quantised": QUANTISED,
    "huge": HUGE,
    "nothing run": NOTHING_RUN,
    "empty": Document.of({}),
}
