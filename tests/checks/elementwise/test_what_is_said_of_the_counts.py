"""Of what the sweep counted: which finding says it, in which words, and from which number on."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from bot.checks.elementwise import weights
from bot.checks.elementwise.tally import Swept, Tally
from bot.checks.expected.adapter_claims import adapter_claims
from bot.checks.expected.claims import Claims


@dataclass(frozen=True)
class Wanted:
    """Of an Expected what is asked here."""

    touched: bool = True
    base: Any = "the base's tensor"
    steps: tuple[Any, ...] = ("a step",)
    shape: tuple[int, ...] = (4, 4)


@dataclass(kw_only=True)
class Known:
    """Of a Case what is asked here."""

    tallies: list[Tally] = field(default_factory=list)
    expected: dict[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    base: dict[str, Any] = field(default_factory=dict)
    merged: dict[str, Any] = field(default_factory=dict)
    ours: bool = True

    def as_case(self) -> Any:
        swept = Swept(tallies={tally.key: tally for tally in self.tallies})
        expected = self.expected or {tally.key: tally.wanted for tally in self.tallies}
        claims = Claims(method="LoRA", tensors=2, expected=expected, dropped=self.dropped)
        base, merged = SimpleNamespace(tensors=self.base), SimpleNamespace(tensors=self.merged)
        return SimpleNamespace(
            once={weights.sweep_all: swept, adapter_claims: claims}.__getitem__, subject=SimpleNamespace(ours=self.ours),
            base=base, model=merged, merged=merged, merged_config={},
        )  # fmt: skip


def tally(key: str = "q", *, touched: bool = True, **counts: Any) -> Tally:
    wanted: Any = Wanted(touched)
    return Tally(**{"key": key, "wanted": wanted, "elements": 16, "changed": 16, "kept": 1.0, "power": 1.0, **counts})


def test_what_is_too_close_to_call_is_counted_and_only_then_spoken_of():
    case = Known(tallies=[tally("q"), tally("k")]).as_case()
    assert weights.touched(case).why == "Each is base plus adapter, rounded once."
    case = Known(tallies=[tally("q", undecided=2), tally("k", undecided=1)]).as_case()
    result = weights.touched(case)
    assert (result.status, result.measured) == ("pass", "0 of 32 differ")
    assert result.why == "Each is base plus adapter, rounded once. 3 elements too close to call."


@pytest.mark.parametrize(
    ("counts", "unmerged"),
    [
        ({"changed": 0, "kept": 0.0}, True),
        ({"changed": 3, "kept": 0.0099}, True),
        ({"changed": 3, "kept": -0.0099}, True),
        ({"changed": 3, "kept": 0.0101}, False),
        ({"changed": 3, "kept": -0.0101}, False),
        ({"changed": 3, "power": 0.0}, False),
    ],
)
def test_a_tensor_that_keeps_under_a_hundredth_of_the_delta_was_not_merged(counts: dict[str, Any], unmerged: bool):
    result = weights.coverage(Known(tallies=[tally("q", wrong=16, **counts), tally("k")]).as_case())
    assert (result.status, result.why) == (
        ("fail", "q is still the base's: it was not merged.") if unmerged else ("pass", "2 adapter tensors, each once.")
    )


def test_what_changed_and_should_not_have_is_named_and_what_is_too_small_to_show_counted():
    small = tally("q", changed=0, kept=0.0)
    result = weights.coverage(Known(tallies=[small, tally("k")]).as_case())
    assert (result.status, result.why) == ("pass", "2 adapter tensors, each once; 1 too small to show.")
    result = weights.coverage(Known(tallies=[tally("q"), tally("norm", touched=False, changed=1)]).as_case())
    assert (result.status, result.why) == ("fail", "norm changed, and the adapter does not change it.")


def test_a_key_too_many_is_named_for_what_it_is():
    expected = {"q": Wanted(), "k": Wanted()}
    base = {"q": 0, "k": 0, "score": 0, "extra": 0}
    stored = {"q": 0, "k": 0}
    for key, words in (
        ("score", "score belongs to a head that the merged model has not."),
        ("extra", "extra should not be there."),
        ("alien", "alien is not a key of the base."),
    ):
        known = Known(expected=expected, dropped=("score",), base=base, merged={**stored, key: 0})
        result = weights.keys(known.as_case())
        assert (result.status, result.why) == ("fail", words)


def test_keys_are_the_bases_or_as_declared():
    expected = {"q": Wanted(), "k": Wanted()}
    result = weights.keys(Known(expected=expected, base=expected, merged=expected).as_case())
    assert (result.status, result.allowed, result.why) == ("pass", "the base's", "The keys are the base's.")
    result = weights.keys(Known(expected=expected, base={"q": 0, "score": 0}, merged=expected).as_case())
    assert (result.allowed, result.why) == (
        "as declared",
        "The keys are the base's; 1 key new, 1 key dropped, as declared.",
    )


def test_shapes_are_the_bases_or_as_declared():
    def stored(*shape: int) -> Any:
        return SimpleNamespace(stored=SimpleNamespace(shape=shape))

    expected = {"q": Wanted(base=stored(4, 4)), "embed": Wanted(base=stored(3, 4)), "new": Wanted(base=None)}
    merged = {key: stored(4, 4) for key in expected}
    result = weights.shapes(Known(expected=expected, merged=merged).as_case())
    assert (result.allowed, result.why) == ("as declared", "The shapes are the base's, but for 1 resized tensor.")
    del expected["embed"], merged["embed"]
    result = weights.shapes(Known(expected=expected, merged=merged).as_case())
    assert (result.status, result.allowed, result.why) == ("pass", "the base's", "The shapes are the base's.")
    result = weights.shapes(Known(expected=expected, merged={**merged, "q": stored(2, 8)}).as_case())
    assert (result.status, result.why) == ("fail", "q is (2, 8), not (4, 4).")


def test_of_the_finite_it_is_said_whose_they_are_and_how_many_were_clamped():
    def finite(**counts: int) -> tuple[str, str, str]:
        result = weights.finite(Known(tallies=[tally("q", **counts), tally("k")]).as_case())
        return result.status, result.allowed, result.why

    assert finite() == ("pass", "0 non-finite", "Every weight is a finite number.")
    assert finite(bad=1) == ("fail", "0 non-finite", "q has 1 value that are NaN or infinite.")
    assert finite(unnumbered=2) == ("fail", "0 non-finite", "q has 2 values that are NaN, as the base has.")
    assert finite(inherited=2) == ("warn", "those of the base", "q has 2 values that are infinite, as the base has.")
    clamped = "3 values too large for the dtype, stored as its largest number, as asked."
    assert finite(clamped=3, inherited=1) == ("warn", "none clamped", clamped)
    assert finite(clamped=3, bad=1)[0] == "fail"


def test_what_is_left_of_the_delta_is_shown_by_its_power_and_warned_of_below_nine_tenths():
    def retention(*kept: float) -> Any:
        tallies = [tally(f"q{at}", kept=value * (at + 1), power=at + 1.0) for at, value in enumerate(kept)]
        return weights.retention(Known(tallies=tallies).as_case())

    assert (retention(0.9, 0.9).status, retention(0.89, 0.9).status) == ("pass", "warn")
    mixed = retention(0.5, 1.0, 1.0)
    assert (mixed.status, mixed.measured, mixed.worst) == ("pass", "0.917", ("q0 keeps 0.500",))
    assert (
        weights.retention(Known(tallies=[tally(power=0.0)]).as_case()).why == "The adapter's delta is zero everywhere."
    )


def test_what_all_tensors_lean_by_stands_before_what_each_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights, "lean", lambda tensors, *others: f"leans by {len(tensors)}")
    counts: dict[str, Any] = {"wrong": 1, "stored": "BF16", "drifts": {("as stored", "delta"): "a drift"}}
    tallies = [tally("q", **counts), tally("k", **counts), tally("v")]
    result = weights.touched(Known(tallies=tallies, ours=False).as_case())
    assert "over all 2 tensors: leans by 2" in result.why
    assert result.worst[:2] == ("q: leans by 1", "k: leans by 1")


def test_a_head_is_tied_where_the_config_or_its_text_config_says_so():
    key = "lm_head.weight"
    for config, tied in (
        ({}, False), ({"tie_word_embeddings": True}, True), ({"text_config": {"tie_word_embeddings": True}}, True),
        ({"text_config": {"tie_word_embeddings": False}}, False), ({"text_config": None}, False),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, False),
    ):  # fmt: skip
        case = Known(expected={key: Wanted(touched=False)}, base={key: 0}, merged={key: 0}).as_case()
        case.merged_config = config
        assert (weights.keys(case).status == "warn") == tied, config
