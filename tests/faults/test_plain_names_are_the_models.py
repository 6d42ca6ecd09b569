"""Where the names are known without the model, the claims are the same, and the level weights imports no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bot.checks.expected import claims
from bot.checks.expected.claims import Claims, read_claims
from bot.checks.reading.checkpoint import read_input
from bot.checks.reading.plain_skeleton import NotPlain
from bot.checks.subject import Subject
from tests.faults import family
from tests.faults.conftest import Builder, claim, subject
from tests.faults.family import FAMILY
from tests.faults.models import RECIPES

# What needs no model. Of the rest something is in the names: NeoX's older ones, convolutions, replicated layers.
PLAIN = {
    "llama-tied-sharded", "llama-float16-patterns", "llama-to-float16", "llama-float32-to-bfloat16", "gpt2",
    "gpt2-without-prefix", "bert-encoder", "llava", "vit", "t5",
}  # fmt: skip
PLAIN_KIN = {
    "dora", "dora-rslora-float16", "dora-embedding", "square-embedding", "embedding-tied", "head-tied", "both-tied-by-peft",
    "whole-embedding-tied", "whole-embedding-and-norm", "tokens-tied", "tokens-of-the-head", "only-tokens",
    "dora-conv1d", "classifier", "experts",
    "resized", "resized-tied", "biases", "biases-in-older-names", "lora-bias", "lora-bias-and-biases",
    "experts-in-older-names", "experts-transposed", "router", "other-labels",
}  # fmt: skip
VERIFY = """
import sys
from pathlib import Path
from bot.events import silent
from bot.report_document import InputPins, MergeFacts
from bot.verify import Subject, verify
base, adapter, folder = map(Path, sys.argv[1:])
report = verify(Subject(folder=folder, base=base, adapter=adapter, inputs=InputPins.of({}), recorded=None,
                        merge=MergeFacts.of({}), dtype="auto", ours=True, level="weights", not_run=(),
                        trust_remote_code=False), silent)
print(report.verdict, *(name for name in ("torch", "transformers", "peft", "compressed_tensors") if name in sys.modules))
"""


def both(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> tuple[Claims, Claims, bool]:
    """By the names alone, by the model, and whether the names alone did."""
    base = read_input(subject.base, "base")
    without_model = True

    def refuse(*given: Any, **settings: Any) -> None:
        nonlocal without_model
        without_model = False
        return by_model(*given, **settings)

    by_model = claims._names
    monkeypatch.setattr(claims, "_names", refuse)
    plain, alone = read_claims(subject, base), without_model
    for known_names in ("_by_plain_names", "_by_known_layout", "_by_known_head"):
        monkeypatch.setattr(claims, known_names, never)
    return plain, read_claims(subject, base), alone


def never(given: Any) -> Claims:
    raise NotPlain


@pytest.mark.parametrize("name", RECIPES)
def test_of_every_recipe(built: Builder, monkeypatch: pytest.MonkeyPatch, name: str):
    one = built(name)
    plain, by_model, without_model = both(subject(one, one.merged), monkeypatch)
    assert plain == by_model
    assert without_model == (name in PLAIN)


@pytest.mark.parametrize("name", FAMILY)
def test_of_the_lora_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    one = family.build(FAMILY[name], tmp_path)
    plain, by_model, without_model = both(claim(one.base, one.adapter, one.merged), monkeypatch)
    assert plain == by_model
    assert without_model == (name in PLAIN_KIN)


@pytest.mark.parametrize("name", sorted(PLAIN - {"llama-to-float16", "llama-float32-to-bfloat16"}))
def test_the_level_weights_imports_no_torch(built: Builder, name: str):
    one = built(name)
    folders = map(str, (one.base, one.adapter, one.merged))
    done = subprocess.run([sys.executable, "-c", VERIFY, *folders], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["verified"]
