"""A broken merge: its report names what most likely went wrong. A correct one: its report names nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bot.verify import table
from tests.checks.cause import planted
from tests.checks.cause.planted import K0, O0, Q0, Q1, Planted
from tests.faults import damage, wrong
from tests.faults.conftest import prove
from tests.faults.models import Built

ROOT = Path(__file__).parents[3]
TIED_LLAMA = "llama-tied-sharded"
EXPERT = "model.layers.0.mlp.experts.1."


def at_layer(number: int) -> Callable[[str], bool]:
    return lambda key: f".{number}." in key


def named(*names: str) -> Callable[[str], bool]:
    return lambda key: any(name in key for name in names)


PLANTED: dict[str, Planted] = {
    # nothing, or not all
    "the base itself": Planted(on=TIED_LLAMA, plant=planted.unmerged(), kind="not-merged", words=("all 8 tensors",)),
    "the base itself, Conv1D": Planted(on="gpt2", plant=planted.unmerged(), kind="not-merged"),
    "the base itself, cast": Planted(on="llama-to-float16", plant=planted.unmerged(), kind="not-merged"),
    "the base itself, experts": Planted(on="experts", plant=planted.unmerged(), kind="not-merged"),
    "the base itself, ours": Planted(on=TIED_LLAMA, plant=planted.unmerged(), kind="not-merged", foreign=False),
    "one module everywhere": Planted(
        on=TIED_LLAMA, plant=planted.unmerged(named("down_proj")),
        kind="modules-left-out", words=("2 of 8", "mlp.down_proj in layers 0 and 1"),
    ),
    "one layer": Planted(on="rank-8", plant=planted.unmerged(at_layer(1)), kind="modules-left-out", words=("4 of 8", "in layer 1")),
    "one module, Conv1D": Planted(on="gpt2", plant=planted.unmerged(named("c_fc")), kind="modules-left-out", words=("c_fc",)),
    "the last shard": Planted(on="rank-8", plant=planted.last_shard, kind="modules-left-out", words=("all that model-",)),
    "one expert": Planted(
        on="experts", plant=planted.unmerged(lambda key: "layers.0" in key and ".experts.1." in key), kind="modules-left-out",
        words=("experts",),
    ),
    "a saved module": Planted(
        on="whole-embedding-and-norm",
        plant=planted.in_exact_numbers("whole-embedding-and-norm", wrong.left_as_it_was("model.norm.weight", wrong.EMBEDDING)),
        kind="saved-modules-forgotten", words=("model.norm", "embed_tokens"),
    ),
    "tokens": Planted(
        on="tokens-tied", plant=planted.unmerged(named("embed_tokens")), kind="tokens-forgotten", words=("3 rows",),
    ),
    "a classifier's head": Planted(on="classifier", plant=planted.the_bases_class, kind="saved-modules-forgotten", words=("score",)),
    "biases": Planted(on="biases", plant=planted.unmerged(named("bias")), kind="saved-modules-forgotten"),
    # too much, too little
    "twice": Planted(on=TIED_LLAMA, plant=planted.twice, kind="merged-twice", words=("all 8 tensors",)),
    "twice by PEFT, bfloat16": Planted(on=TIED_LLAMA, plant=planted.by_peft("bfloat16", times=2), kind="merged-twice"),
    "twice by PEFT, float32": Planted(on="bert-encoder", plant=planted.by_peft("float32", times=2), kind="merged-twice"),
    "twice by PEFT, DoRA": Planted(on="dora", plant=planted.by_peft_of_kin("dora", times=2), kind="merged-twice"),
    "double": Planted(on=TIED_LLAMA, plant=planted.times(2.0), kind="factor", words=("2 times",)),
    "half": Planted(on="gpt2", plant=planted.times(0.5), kind="factor", words=("0.5 times",)),
    "subtracted": Planted(on=TIED_LLAMA, plant=planted.times(-1.0), kind="factor", words=("-1 times", "subtracted")),
    "α/√r for α/r": Planted(on="rank-8", plant=planted.times(8**0.5), kind="factor", words=("2.828 times", "α/√r in place of α/r")),
    "α/r for α/√r": Planted(
        on="llama-float16-patterns", plant=planted.times(lambda key: 2**-0.5 if "q_proj" in key else 0.5), kind="factor",
        words=("0.5 to 0.707 times", "α/r in place of rsLoRA's α/√r"),
    ),
    "no scaling": Planted(on="rank-8", plant=planted.times(1 / 3), kind="factor", words=("0.3333 times", "the scaling left out")),
    "no α": Planted(on="rank-8", plant=planted.times(1 / 24), kind="factor", words=("α left out",)),
    "no r": Planted(on="wide-float32", plant=planted.times(8.0), kind="factor", words=("8 times", "not divided by r")),
    "1.37": Planted(on="wide-float32", plant=planted.times(1.37), kind="factor", words=("1.37 times",)),
    "1.01, each element within a rounding": Planted(
        on=TIED_LLAMA, plant=planted.arithmetic(planted.a_per_cent_more), kind="factor", words=("times what it should be", "±"),
    ),
    "double, DoRA": Planted(
        on="dora", plant=planted.in_exact_numbers("dora", lambda at, exact: planted.dora_times(at, exact, 2.0)), kind="factor",
        words=("2 times",),
    ),
    # in the wrong place
    "transposed": Planted(on=TIED_LLAMA, plant=planted.transposed(named("proj")), kind="transposed", words=("4 of 4 square",)),
    "transposed, one": Planted(on="wide-float32", plant=planted.transposed(named("0.self_attn.q_proj")), kind="transposed"),
    "transposed, Conv1D": Planted(on="gpt2", plant=planted.transposed(named("attn.c_proj")), kind="transposed"),
    "q and v": Planted(
        on=TIED_LLAMA, plant=planted.delta_of(planted.q_and_v), kind="swapped",
        words=("self_attn.q_proj and self_attn.v_proj in layer 0", "in layer 1"),
    ),
    "two layers": Planted(
        on="rank-8", plant=planted.delta_of(planted.other_layer), kind="swapped", words=("in layers 0 and 1",),
    ),
    "a delta of another layer": Planted(on=TIED_LLAMA, plant=damage.delta_of_another_layer, kind="swapped", words=(Q0, Q1)),
    "two layers' whole weights": Planted(on=TIED_LLAMA, plant=planted.exchanged((Q0, Q1)), kind="swapped", words=("numbers",)),
    "two weights that nothing touches": Planted(on=TIED_LLAMA, plant=planted.exchanged((K0, O0)),
        kind="swapped", words=("k_proj and self_attn.o_proj",)),
    "two experts": Planted(
        on="experts-fused", plant=planted.in_exact_numbers("experts-fused", wrong.experts_swapped),
        kind="swapped", words=("expert 0 and expert 1",),
    ),
    # rounded
    "a rounded delta": Planted(
        on=TIED_LLAMA, plant=planted.arithmetic(planted.delta_first), kind="rounded", words=("delta rounded to the storage dtype",),
    ),
    "a rounded delta, ours": Planted(
        on=TIED_LLAMA, plant=planted.arithmetic(planted.delta_first), kind="rounded", foreign=False,
    ),
    "by way of float16": Planted(on=TIED_LLAMA, plant=planted.arithmetic(planted.through_half),
        kind="rounded", words=("by way of float16",)),
    "toward zero": Planted(on=TIED_LLAMA, plant=planted.arithmetic(planted.toward_zero), kind="rounded", words=("toward zero",)),
    # another base, another adapter
    "nf4": Planted(on="wide", plant=planted.quantised("nf4"), kind="quantised-base", words=("nf4",)),
    "fp4": Planted(on="wide", plant=planted.quantised("fp4"), kind="quantised-base", words=("fp4",)),
    "int8": Planted(on="wide", plant=planted.quantised("int8"), kind="quantised-base", words=("int8",)),
    "the result by way of nf4": Planted(on="wide", plant=planted.quantised("nf4", result=True),
        kind="quantised-result", words=("nf4",)),
    "another revision": Planted(on="wide", plant=planted.another_base(0.02), kind="other-base", words=("0.02", "another revision")),
    "another model": Planted(on=TIED_LLAMA, plant=planted.unrelated_base, kind="other-base", words=("unrelated",)),
    "another run": Planted(on="wide", plant=planted.another_adapter(0.0), kind="other-adapter", words=("another run",)),
    "another step": Planted(on="wide-float32", plant=planted.another_adapter(0.9), kind="other-adapter", words=("earlier or later",)),
    # tied, lost
    "an embedding, by PEFT": Planted(on="embedding-tied", plant=planted.by_peft_of_kin("embedding-tied"),
        kind="tied-both", words=("lm_head",)),
    "a head, by PEFT": Planted(on="head-tied", plant=planted.by_peft_of_kin("head-tied"), kind="tied-both", words=("embed_tokens",)),
    "an embedding, both stored": Planted(
        on="embedding-tied", plant=planted.in_exact_numbers("embedding-tied", wrong.head_changed_with_the_embedding), kind="tied-both",
    ),
    "the head": Planted(on="wide", plant=planted.lost("lm_head.weight"), kind="head-lost"),
    "a tensor": Planted(on="rank-8", plant=planted.lost(K0), kind="tensors-lost", words=("k_proj",)),
    "the vocabulary": Planted(on="resized", plant=planted.the_bases_vocabulary, kind="vocabulary-size", words=("160 rows", "167")),
    "prefixed keys": Planted(on=TIED_LLAMA, plant=damage.prefixed_keys, kind="renamed-keys", words=("base_model.model.",)),
    # DoRA
    "no magnitude": Planted(on="dora", plant=planted.in_exact_numbers("dora", planted.no_magnitudes), kind="dora-magnitude"),
    "the base's norm": Planted(on="dora", plant=planted.in_exact_numbers("dora", wrong.norm_ignored), kind="dora-magnitude"),
    # files
    "rope": Planted(on=TIED_LLAMA, plant=damage.in_config(rope_parameters__rope_theta=5e5),
        kind="config-changed", words=("rope_theta",)),
    "tokenizer": Planted(on=TIED_LLAMA, plant=damage.changed_tokenizer, kind="tokenizer-changed", words=("tokenizer.json",)),
    "template": Planted(on=TIED_LLAMA, plant=damage.lost_template, kind="chat-template-changed", words=("lost",)),
    "a missing shard": Planted(on=TIED_LLAMA, plant=damage.missing_shard, kind="damaged-files", words=("missing",)),
    "an adapter left behind": Planted(on=TIED_LLAMA, plant=damage.adapter_left_behind, kind="stray-files"),
    # a little of it
    "one row": Planted(
        on="wide", plant=planted.rows([5], Q0, lambda merged, base: base), kind="few-rows", words=("row 5 of", "the base's numbers"),
    ),
    "one row, noise": Planted(on="wide", plant=planted.rows([5], Q0, lambda merged, base: merged * 1.5),
        kind="few-rows", words=("row 5 of",)),
    "a bit": Planted(on=TIED_LLAMA, plant=damage.flipped_bit_untouched, kind="few-rows", words=("1 element", "row 5")),
    "a NaN": Planted(on=TIED_LLAMA, plant=damage.nan_in_touched, kind="few-rows", words=("NaN",)),
    "two faults that cancel": Planted(on="wide", plant=planted.two_that_cancel, kind="few-rows", words=("rows 3, 4",)),
    # several
    "a layer and the tokenizer": Planted(
        on=TIED_LLAMA, plant=planted.both(planted.unmerged(at_layer(1)), damage.changed_tokenizer), kind="modules-left-out",
        also=("tokenizer-changed",),
    ),
    "half double, one module left out": Planted(
        on="rank-8", plant=planted.both(planted.times(lambda key: 2.0), planted.unmerged(named("v_proj"))), kind="factor",
        also=("modules-left-out",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_what_went_wrong_is_named(models_built: Callable[[str], Built], tmp_path: Path, name: str):
    case = PLANTED[name]
    built = models_built(case.on)
    folder = built.fresh(tmp_path / "merged")
    changes = case.plant(folder, built) or {}
    report = prove(built, folder, ours=not case.foreign, **changes)
    cause = report.document.cause
    assert cause is not None, table(report)
    assert cause["kind"] == case.kind, table(report)
    assert [word for word in case.words if word not in cause["sentence"]] == [], table(report)
    assert set(case.also) <= {other["kind"] for other in cause.get("also", ())}, table(report)
    assert cause["figures"], cause
    assert f"Most likely: {cause['sentence']}" in " ".join(table(report).split())
    report.document.canonical()  # no figure is NaN


def test_every_hypothesis_has_its_row_in_the_manual_and_every_row_is_a_kind():
    shown = set(re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "broken-merge.md").read_text(), re.MULTILINE))
    text = "".join(path.read_text() for path in (ROOT / "bot" / "checks" / "cause").glob("*.py"))
    kinds = set(re.findall(r'kind="([a-z-]+)"', text)) | set(re.findall(r'": \("([a-z-]+)", "', text))
    kinds |= {"quantised-base", "quantised-result"}
    assert shown == kinds
