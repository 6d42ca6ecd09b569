"""Whatever people write into a card's metadata, a merged model's card carries what the Hub takes of it, and no more."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.card import preview, render
from bot.devhub import derived as hubs
from bot.metadata import fields
from bot.report_document import Document
from tests.publish.given import ADAPTER, BASE, TARGET, report, source


def read(name: str, value: Any) -> tuple[list[str], list[str]]:
    """What is carried of a field, and the sentences about it."""
    left = fields.Left()
    return getattr(fields, name)({"language" if name == "languages" else name: value}, left), left.sentences("x")


@pytest.mark.parametrize(
    ("written", "codes"),
    [
        ("en", ["en"]), (["de", False], ["de", "no"]), ("zh-CN", ["zh"]), ("pt_BR", ["pt"]), ("EN", ["en"]), ("zh-Hans-CN", ["zh"]),
        ("English", ["en"]), ("English and German", ["en", "de"]), ("en, de/fr", ["en", "de", "fr"]), ("jp", ["ja"]), ("ger", ["de"]),
        ("code", ["code"]), ("multilingual", ["multilingual"]), ("eng", ["eng"]), ("yue", ["yue"]), (["en", "en-US"], ["en"]),
        ("klingonish", []), ("all of them", []), ("xx", []), (True, []), ({"a": 1}, []), ([["en"]], []), (3, []), ("en and prose", []),
        ("in", []), ("protein", []), (None, []), ("", []),
    ],
)  # fmt: skip
def test_a_language_is_a_code_that_the_hub_lists(written: Any, codes: list[str]) -> None:
    assert read("languages", written)[0] == codes


@pytest.mark.parametrize(
    ("written", "ids"),
    [
        ("imdb", ["imdb"]), (["HuggingFaceFW/fineweb"], ["HuggingFaceFW/fineweb"]), ("a/b, c/d", ["a/b", "c/d"]),
        ("https://huggingface.co/datasets/a/b", ["a/b"]), ("generator", ["generator"]),
        ("./data", []), ("/home/me/data", []), ("data/train.jsonl", []), ("C:\\data", []), ("a/b/c", []), ("my own notes", []),
        ("None", []), ([None], []), ([{"name": "x"}], []), ("x--y/z", []), ("../x", []), ("https://example.com/x", []),
        ("a" * 200, []),
    ],
)  # fmt: skip
def test_a_data_set_is_an_id_on_the_hub(written: Any, ids: list[str]) -> None:
    assert read("datasets", written)[0] == ids


@pytest.mark.parametrize("written", ["F1 (macro)", "bleu+", "BERTScore: F1", "accuracy%", "exact_match,none"])
def test_a_metric_has_any_name(written: str) -> None:
    assert read("metrics", written) == ([written], [])


def test_one_sentence_says_what_became_of_it() -> None:
    assert read("languages", ["zh-CN", "prose here"])[1] == [
        "The Hub would not take all that x's card says: language 'zh-CN' becomes zh, language 'prose here' is left out."
    ]
    assert read("languages", ["en", "de"])[1] == []
    assert read("datasets", [f"no {n}" for n in range(9)])[1][0].endswith("'no 2' is left out and 6 more.")


WORDS = st.sampled_from(
    ["en", "zh-CN", "Apache 2.0", "mit", "other", "cc-by-nc-4.0", "llama3", "LICENSE", "../x", "https://x.example/a b", "a/b",
     "text-generation", "lora@1.0.0", "no", "---", "x: y", "\x00", "\ud800", "${title}", "x\n---\ny", "LICENSE.txt", "é" * 300]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | WORDS | st.dates()
JUNK = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=8
)
KEYS = ("license", "license_name", "license_link", "language", "datasets", "tags", "metrics", "pipeline_tag", "widget", "model-index",
        "base_model", "library_name")  # fmt: skip
CARDS = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JUNK))


@settings(deadline=None, max_examples=200)
@given(base=CARDS, adapter=CARDS, other=CARDS, repo=st.booleans(), several=st.booleans())
def test_the_hub_takes_every_card_whatever_the_inputs_say(
    base: Any, adapter: Any, other: Any, repo: bool, several: bool
) -> None:
    sources = {
        "base": source("base", BASE if repo else None, card=base),
        "adapter": source("adapter", ADAPTER if repo else None, card=adapter),
        "adapters": (source("adapter", ADAPTER, card=adapter), source("adapter", "x/y", card=other)) if several else (),
    }
    text = render(Document.of(report({})), target=TARGET, license=None, **sources)
    assert hubs.problems(text) == ([], [])
    assert hubs.problems(preview(license=None, **sources)) == ([], [])
    text.encode()
