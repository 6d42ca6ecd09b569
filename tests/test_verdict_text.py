"""The verdict in a sentence and six figures, for everybody who shows it."""

from __future__ import annotations

from typing import Any

import pytest

from bot.report_document import Document
from bot.verdict_text import cause, causes, figures, had_nothing, level, sentence

FLOOR = {"ratio": 0.5123, "standard_error": 0.0812, "limit": 1.9, "top1_agreement": 0.998, "positions": 1480}


def check(id: str, measured: str, status: str = "pass", allowed: str = "", why: str = "") -> dict[str, Any]:
    return {"id": id, "status": status, "measured": measured, "allowed": allowed, "why": why, "worst": []}


WEIGHTS = (
    check("headers", "1 weight file"),
    check("keys", "290 keys"),
    check("touched", "0 of 357,826,560 differ"),
    check("untouched", "0 of 136,206,208 differ"),
    check("coverage", "168 of 168 tensors"),
    check("retention", "0.998"),
)
ANSWERS = check("behaviour", "K = 0.512 ± 0.08", allowed="K ≤ 1.9")


def document(*checks: dict[str, Any], **changes: Any) -> Document:
    return Document.of({"verdict": "verified", "checks": [*checks], "noise_floor": None, "not_run": []} | changes)


def texts(of: Document) -> dict[str, str]:
    return {figure.id: figure.text for figure in figures(of)}


FULL = document(*WEIGHTS, ANSWERS, noise_floor=FLOOR, delta=[{"relative": 0.004}, {"relative": 0.0312}])


def test_a_full_proof_says_what_was_compared_and_how_the_model_answers():
    assert sentence(FULL) == (
        "Verified at level full: every one of 494,032,768 weights is base plus adapter, rounded once; the merged model "
        "answers as the unmerged one (K = 0.512 ± 0.08, at most 1.9)."
    )


def test_the_figures_are_six_and_always_the_same():
    assert texts(FULL) == {
        "elements": "0 of 494,032,768",
        "tensors": "168 of 290",
        "retention": "99.8%",
        "delta": "0.4% to 3.1%, by layer and module",
        "k": "0.512 ± 0.08, at most 1.9",
        "top1": "99.8% of 1,480 positions",
    }
    assert all(figure.measured for figure in figures(FULL))
    assert [figure.id for figure in figures(document())] == [figure.id for figure in figures(FULL)]


def test_what_was_not_run_says_so_in_the_sentence_and_in_its_figures():
    weights = document(*WEIGHTS, not_run=[{"id": "full", "reason": "it needs 40 GB of memory"}])
    assert sentence(weights).startswith("Verified at level weights: every one of 494,032,768 weights is")
    assert sentence(weights).endswith("; the models were not run.")
    assert texts(weights)["k"] == texts(weights)["top1"] == "not run: it needs 40 GB of memory"
    files = document(WEIGHTS[0])
    assert sentence(files) == (
        "Verified at level files: the files are whole, and no weight was compared; the models were not run."
    )
    assert {figure.measured for figure in figures(files)} == {False}


def test_a_full_proof_that_this_installation_cannot_run_is_one_of_the_weights():
    skipped = check("behaviour", "not run", "skip", why="Not run: transformers has no such class.")
    excused = document(*WEIGHTS, skipped)
    assert level(excused) == "weights"
    assert sentence(excused).startswith("Verified at level weights: ")
    assert texts(excused)["k"] == "not run: transformers has no such class"


def test_a_quantised_merge_is_told_by_its_bytes_and_by_what_it_keeps():
    stored = document(
        check("touched", "0 of 0 differ"),
        check("untouched", "0 of 136,206,208 differ"),
        check("quantised", "168 weights"),
        check("retention", "not plain"),
        check("requantised", "KL ratio 0.03", allowed="KL ratio ≤ 0.2"),
        comparison=[{"what": "nf4", "published": True, "top1_agreement": 0.97}],
    )
    assert sentence(stored) == (
        "Verified at level full: all quantised tensors (168) are what their library makes of the exact merge, bit for bit; of "
        "the others every one of 136,206,208 weights is base plus adapter, rounded once; the quantised model keeps what the "
        "adapter taught (KL ratio 0.03, at most 0.2)."
    )
    assert texts(stored)["elements"] == "0 of 136,206,208; 168 quantised tensors bit for bit"
    assert texts(stored)["retention"] == "not measured: it is stored quantised"
    assert texts(stored)["k"] == "0.03, at most 0.2"
    assert texts(stored)["top1"] == "97.0%, with the model as trained"


def test_remarks_are_counted_and_named():
    assert sentence(document(*WEIGHTS, check("license", "1 remark", "warn"))).endswith(" With 1 remark: license.")


def test_a_foreign_merge_is_told_with_its_arithmetic():
    near = check("touched", "12 of 73,728 differ", "warn", "float32 sums")
    assert sentence(document(near)).startswith(
        "Verified at level weights: 12 of 73,728 differ from base plus adapter, within the error of another arithmetic "
        "(float32 sums); the models were not run."
    )


def test_a_merge_without_effect_is_the_base():
    same = check("effect", "none changed", "warn", why="The adapter changes nothing: every delta is exactly zero.")
    assert sentence(document(*WEIGHTS, same)) == (
        "Verified at level weights, and this is the base under another name: the adapter changes nothing: every delta is "
        "exactly zero."
    )


WRONG = check("touched", "959 of 357,826,560 differ", "fail", "0 differ", "1 tensor is not base plus adapter.")


def test_a_failure_names_the_first_check_that_failed_and_counts_the_others():
    skipped = check("behaviour", "not run", "skip", why="Not run: touched did not pass.")
    failed = document(WRONG, check("coverage", "1 fault", "fail"), skipped, verdict="not-verified")
    assert sentence(failed) == (
        "Not verified: touched failed (959 of 357,826,560 differ): 1 tensor is not base plus adapter. Besides, 1 other check "
        "failed and 1 check could not be run."
    )
    assert level(failed) == "weights"
    assert texts(failed)["elements"] == "959 of 357,826,560"
    only = document(skipped, verdict="not-verified")
    assert sentence(only) == "Not verified: behaviour could not be run: not run: touched did not pass."


def test_the_likely_cause_is_told_and_what_else_went_wrong():
    other = {"kind": "file", "sentence": "a file is cut.", "tensors": [], "figures": {}}
    likely = {
        "kind": "scaling",
        "sentence": "the adapter was added twice.",
        "tensors": [],
        "figures": {},
        "also": [other],
    }
    failed = document(WRONG, verdict="not-verified", cause=likely)
    assert cause(failed) == "Most likely: the adapter was added twice."
    assert causes(failed) == ["Most likely: the adapter was added twice.", "Besides: a file is cut."]
    assert cause(document(WRONG, verdict="not-verified", cause=None)) is None
    assert causes(document(*WEIGHTS)) == []


@pytest.mark.parametrize("measured", ["none", "no report", "single file", "plain", "not told"])
def test_a_check_that_had_nothing_to_look_at_is_known(measured: str):
    of = document(check("x", measured), check("y", "1 file"), check("z", measured, "warn"))
    assert [had_nothing(each) for each in of.checks] == [True, False, False]
