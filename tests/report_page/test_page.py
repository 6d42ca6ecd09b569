"""The report as a page: it says what the report says, loads and runs nothing, escapes everything, and fits every screen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bot.report_document import Document
from bot.report_page.page import render_page
from tests.browser import Reader, corner, in_a_browser, measured, site
from tests.report_page.samples import (
    CAUSE,
    FAILED,
    HUGE,
    LLAMA,
    NOTHING_RUN,
    QUANTISED,
    SAMPLES,
    SHA,
    WHOLE,
    check,
    sample,
    without,
)

EVIL = "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"
each_sample = pytest.mark.parametrize("document", SAMPLES.values(), ids=SAMPLES)


def text_of(document: Document) -> str:
    return Reader(render_page(document)).text


@each_sample
def test_it_loads_nothing_and_runs_nothing(document: Document) -> None:
    page = render_page(document)
    read = Reader(page)
    assert not read.tags & {
        "script",
        "link",
        "img",
        "iframe",
        "form",
        "input",
        "button",
        "object",
        "a",
        "base",
        "image",
        "use",
    }
    assert not read.links
    assert not [name for name in read.attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    assert """content="default-src 'none'; style-src 'unsafe-inline'\"""" in page


def everything_is(value: str, content: Any) -> Any:
    """The same shape with this text for every text and name of a field that is anybody's."""
    if isinstance(content, dict):
        return {name: everything_is(value, inner) for name, inner in content.items()}
    if isinstance(content, list):
        return [everything_is(value, inner) for inner in content]
    return value if isinstance(content, str) else content


def test_what_strangers_wrote_is_text() -> None:
    hostile = everything_is(
        EVIL, WHOLE | {"cause": CAUSE, "comparison": QUANTISED.comparison, "not_run": [{"id": "x", "reason": "y"}]}
    )
    for files in ({EVIL: EVIL}, {}):
        page = render_page(Document.of(hostile | {"subject": {"files": files}, "environment": {EVIL: EVIL}}))
        read = Reader(page)
        assert not read.tags & {"script", "img"}
        assert not [name for name in read.attributes if name.startswith("on")]
        assert "alert(1)" in read.text  # as words
        assert page.count("<style>") == page.count("</style>") == 1


@pytest.mark.parametrize("value", [None, 7, -1.5, 1e308, "x", True, [], {}, [[]], {"a": {}}, 10**30], ids=str)
@pytest.mark.parametrize("name", ["delta", "prompts", "probe", "answers", "comparison", "checks", "not_run"])
def test_rows_of_any_kind_make_a_page(name: str, value: Any) -> None:
    rows = WHOLE.get(name) or QUANTISED.comparison or [{"id": "full", "reason": "x"}]
    odd = [dict.fromkeys(rows[0], value)] if rows else []
    if name in ("checks", "not_run"):  # a report that can be read at all has texts there
        odd = (
            [{key: str(value) for key in rows[0] if key != "worst"}]
            if rows
            else [{"id": str(value), "reason": str(value)}]
        )
    assert "<main>" in render_page(sample(**{name: odd}))


@pytest.mark.parametrize("value", [None, 7, "x", True, [], {}], ids=str)
@pytest.mark.parametrize("name", ["ratio", "limit", "metric", "positions", "top1_agreement"])
def test_a_noise_floor_of_any_kind_makes_a_page(name: str, value: Any) -> None:
    assert "<main>" in render_page(sample(noise_floor=WHOLE["noise_floor"] | {name: value}))


def test_no_secret_shows() -> None:
    token = "hf_" + "abcdefghijklmnopqrstuvwxyz012345"
    page = render_page(sample(not_run=[{"id": "full", "reason": f"the token {token} was refused"}]))
    assert token not in page
    assert "was refused" in page


def test_a_report_gives_the_same_page_before_and_after_it_is_written() -> None:
    fresh = sample(merge=WHOLE["merge"] | {"tensors": {"merged": 196, "copied": 94}})
    assert render_page(fresh) == render_page(Document.read(fresh.canonical()))
    assert "not finite" in text_of(Document.read(b'{"probe": [{"module": "m", "control": NaN, "merged": 1}]}'))


def test_a_verified_merge_says_so_in_a_sentence_and_six_figures() -> None:
    text = text_of(sample())
    assert "alice/lora merged into bob/base" in text
    assert "✓ Verified at level full: every one of 493,961,216 weights is base plus adapter" in text
    for figure in ("0 of 493,961,216", "196 of 290", "98.7%", "0.53 ± 0.02", "99.9% of 1,024 positions"):
        assert figure in text
    assert render_page(sample()).count("<dt>", 0, render_page(sample()).index("</section>")) == 6


def test_a_failure_says_what_most_likely_went_wrong() -> None:
    text = text_of(FAILED)
    assert "✗ Not verified: touched failed (959 of 357,826,560 differ)" in text
    assert "Most likely: the delta was scaled by 0.5 in 1 of 196 tensors." in text
    assert "slope 0.5003" in text
    assert text.index("✗ fail") < text.index("! remark")  # what did not pass comes first


def test_without_colour_every_value_is_in_the_tables() -> None:
    text = text_of(sample())
    for row in WHOLE["delta"]:
        assert f"{row['module']}" in text
    assert "lm_head 1 1.00 % 0.9000" in text
    assert f"3 {LLAMA[2]} 1" in text
    assert "1 60 4.00e-6 2.00e-6 0.300 0.500" in text.replace("e-06", "e-6")


def test_each_prompt_has_its_k_and_the_marks_have_shapes_and_titles() -> None:
    page = render_page(sample())
    assert "<title>prompt 1, merged: 2.00e-06</title>" in page
    for shape in ('<circle class="control"', '<rect class="merged"', '<path class="adapter"'):
        assert shape in page
    assert "K 0.500" in Reader(page).text
    assert "Over all prompts K may be 1.19 at most" in Reader(page).text


def test_the_probe_has_both_curves_and_every_module() -> None:
    page = render_page(FAILED)
    assert page.count("<polyline") == 4  # control and merged, for wide and for narrow screens
    text = Reader(page).text
    assert "model.layers.27" in text
    assert "600" in text  # times the control, from the fault on
    assert "Module by module" not in text_of(without("probe"))


def test_a_module_that_gives_no_finite_number_is_named_so() -> None:
    rows = [{"module": "m.0", "control": 1e-6, "merged": 1e-6}, {"module": "m.1", "control": 1e-6, "merged": None}]
    assert "m.1 1.00e-06 not finite –" in text_of(sample(probe=rows))


def test_a_distance_of_zero_stands_apart() -> None:
    page = render_page(
        sample(
            probe=[{"module": "embed", "control": 0.0, "merged": 0.0}, {"module": "m", "control": 1e-3, "merged": 1e-4}]
        )
    )
    assert re.search(r'<text class="end"[^>]*>0</text>', page)


def test_the_answers_of_the_three_models_stand_side_by_side_and_differences_are_named() -> None:
    text = text_of(sample())
    assert "What is two plus three? base Five. unmerged Five it be. merged differs from unmerged Five it is." in text
    assert "merged the same as unmerged Arr, the sea!" in text


def test_the_ways_to_use_a_quantised_model_stand_in_a_table() -> None:
    text = text_of(QUANTISED)
    assert "merged, then stored as nf4 (this model) 0.0213 7.310 95.3 % 412.3 MB" in text
    assert "not run: the 16-bit model that the base was made from is not at hand" in text
    assert "What quantisation costs" not in text_of(sample())


def test_what_is_not_there_says_why() -> None:
    text = text_of(NOTHING_RUN)
    assert text.count("Not run: --verify files was asked for.") == 3
    assert "What was not run, and why" in text
    assert "What was not run, and why" not in text_of(sample())
    unasked = text_of(without("answers"))
    assert "--report, at the level full" in unasked
    no_tokenizer = [{"id": "answers", "reason": "there is no tokenizer"}]
    assert "Not asked: there is no tokenizer." in text_of(without("answers", not_run=no_tokenizer))


def test_checks_that_had_nothing_to_check_are_folded() -> None:
    page = render_page(sample())
    folded = page[page.index("1 checks that had nothing") :]
    assert "pickles" in folded
    assert "pickles" not in page[: page.index("1 checks that had nothing")]


def test_where_it_comes_from_is_told() -> None:
    text = text_of(sample())
    assert f"alice/lora @ {SHA[:40]} (v1.0)" in text
    for fact in (
        "exact-1",
        "adapter-merge 0.1.0, python 3.11.2, torch 2.13.0",
        "overflow clamp",
        "copied 94, merged 196",
    ):
        assert fact in text
    assert "bitsandbytes" not in text
    assert f"model-00001-of-00002.safetensors {SHA}" in text


def test_inputs_that_are_folders_and_several_adapters_have_names_too() -> None:
    inputs = {"base": {"repo": None, "sha": f"sha256:{SHA}"}, "adapters": [{"repo": "a/x", "sha": "1"}, {"repo": "a/y", "sha": "2"}],
              "combination": {"kind": "cat", "weights": ["0.7", "0.3"]}}  # fmt: skip
    text = text_of(sample(inputs=inputs))
    assert "a/x and a/y merged into a base in a folder" in text
    assert "adapter 2 a/y @ 2" in text
    assert 'kind cat, weights ["0.7", "0.3"]' in text


def test_a_long_list_of_layers_is_cut_in_the_picture_and_whole_in_the_table() -> None:
    rows = [{"layer": layer, "module": "q", "tensors": 1, "relative": 0.01, "retention": 1.0} for layer in range(600)]
    text = text_of(sample(delta=rows))
    assert "88 layers or modules are too many for the picture" in text
    assert "599 q 1 1.00 %" in text


def test_a_large_model_makes_a_page_of_less_than_two_megabytes() -> None:
    assert len(render_page(HUGE).encode()) < 2_000_000


def test_a_check_of_an_unknown_kind_is_shown_as_it_is() -> None:
    assert "perhaps" in text_of(sample(checks=[check("new", "perhaps")]))


# --- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["failed", "huge", "hostile"])
def served(request: pytest.FixtureRequest) -> Iterator[str]:
    long = {"repo": "alice/" + "a-very-long-name-of-an-adapter" * 4, "sha": SHA}
    hostile = sample(inputs={"base": long, "adapter": long}, delta=[{"layer": 0, "module": "m" * 200, "relative": 0.1}],
                     not_run=[{"id": "x" * 100, "reason": "y" * 300}], probe=[{"module": "z" * 200, "control": 1, "merged": 2}],
                     answers=[dict.fromkeys(("prompt", "base", "unmerged", "merged"), "w" * 300)])  # fmt: skip
    with site(render_page({**SAMPLES, "hostile": hostile}[request.param])) as address:
        yield address


@in_a_browser
@pytest.mark.slow
def test_nothing_is_wider_than_the_screen(served: str) -> None:
    widths = (320, 380, 640, 720, 899, 1280)
    assert {width: seen[:2] for width, seen in measured(served, *widths).items()} == {
        width: (width, width) for width in widths
    }


@in_a_browser
@pytest.mark.slow
def test_it_is_light_or_dark_as_the_reader_has_it(tmp_path: Path) -> None:
    with site(render_page(sample())) as address:
        corners = {scheme: corner(address, scheme, tmp_path / f"{scheme}.png") for scheme in ("light", "dark")}
    assert corners == {"light": (255, 255, 255), "dark": (13, 17, 23)}
