"""Plan, report and card say of every tensor of the model what it is made of, once; and which weights were merged into."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from safetensors import safe_open

from bot.plan_text import plan_kept, tensors_in_words
from bot.records import Options, Plan
from tests.faults import family, quantised
from tests.faults.family import FAMILY
from tests.faults.quantised import Quantised
from tests.steps import plan_folders
from tests.stories.conftest import Command, adapter_merge

__all__ = ["adapter_merge"]


def keys(folder: Path) -> set[str]:
    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as opened:
            found |= set(opened.keys())
    return found


def made_of(plan: Plan) -> dict[str, int]:
    assert not plan.refusals, plan.refusals
    found = dict(plan.tensors)
    found.pop("dropped", None)
    return found


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("tokens-tied", {"merged", "rows", "copied"}),
        ("head-tied", {"merged", "copied"}),
        ("whole-embedding-and-norm", {"merged", "replaced", "copied"}),
        ("replicated", {"merged", "copied"}),
        ("classifier", {"merged", "new", "copied"}),
        ("biases", {"merged", "replaced", "copied"}),
    ],
)
def test_of_the_lora_family(tmp_path: Path, name: str, kinds: set[str]):
    built = family.build(FAMILY[name], tmp_path)
    plan = plan_folders(built.base, built.adapter)
    assert set(made_of(plan)) == kinds
    assert sum(made_of(plan).values()) == len(keys(built.merged))
    dropped = keys(built.base) - keys(built.merged)
    assert dict(plan.tensors).get("dropped", 0) == len(dropped)
    assert ("of the base's left out" in plan_kept(plan)) == bool(dropped)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Quantised]:
    return cache(lambda form: quantised.build(form, tmp_path_factory.mktemp(form)))


PACKED: dict[str, tuple[str, str, Options, set[str], str]] = {
    "a plain base": ("nf4", "original", Options(), {"merged", "copied"}, "stored, because the base is not quantised"),
    "to float32": ("nf4", "original", Options(dtype="float32"), {"merged", "cast"}, "the base is not quantised"),
    "to nf4": ("nf4", "original", Options(quantize="nf4"), {"merged", "copied", "quantised"}, "is not quantised"),
    "onto simulated nf4": (
        "nf4", "original", Options(base_weights="simulate-nf4"), {"merged", "copied", "simulated"},
        "simulate-nf4: 14 weights are rounded as bitsandbytes (nf4, double quantisation, blocks of 64) would have held them",
    ),
    "the original of a quantised base": (
        "nf4", "original", Options(base_weights="original"), {"merged", "copied"}, "original: the 16-bit weights",
    ),
    "an nf4 base": ("nf4", "base", Options(), {"merged", "copied", "dequantised"}, "the base is quantised (bitsandbytes)"),
    "an nf4 base, as asked": (
        "nf4", "base", Options(base_weights="stored"), {"merged", "copied", "dequantised"}, "stored, as asked",
    ),
    "an fp8 base, to its own form": ("fp8", "base", Options(quantize="same"), {"merged", "copied"}, "quantised (fp8)"),
}  # fmt: skip


@pytest.mark.parametrize("case", PACKED)
def test_of_packed_bases_and_results(packed: Callable[[str], Quantised], case: str):
    form, base, options, kinds, words = PACKED[case]
    one = packed(form)
    plan = plan_folders(getattr(one, base), one.adapter, options)
    assert set(made_of(plan)) == kinds
    assert sum(made_of(plan).values()) == len(keys(one.merged))
    assert words in plan.base_weights_why
    assert f"base-weights: {plan.base_weights_why}." in plan.notes


def test_the_card_says_the_same_in_words(packed: Callable[[str], Quantised], adapter_merge: Command, tmp_path: Path):
    one, output = packed("nf4"), tmp_path / "merged"
    asked = ("--base", one.original, "--base-weights", "simulate-nf4", "--verify", "files", "--quiet")
    assert adapter_merge("merge", one.adapter, *asked, "--output", output).code == 0
    plan = plan_folders(one.original, one.adapter, Options(base_weights="simulate-nf4"))
    card = (output / "README.md").read_text()
    counts = dict(plan.tensors)
    assert sum(counts.values()) == len(keys(output))
    assert tensors_in_words(counts, "bfloat16", "none") in card
    assert f"{counts['simulated']} quantised and back, without a delta, and rounded once to bfloat16" in card
    assert "| base weights | simulate-nf4: 14 weights are rounded as bitsandbytes" in card
