"""A tokenizer.json that a library wrote anew means the same; one whose numbers differ does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from bot.checks.folder.same_tokenizer import same_tokenizer

ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
LETTERS = {letter: at for at, letter in enumerate("▁abcdefghijklmnopqrstuvwxyzĠĊ")}
# As the Hub has it of GPT-2: no type of model, merges as texts.
OLD = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": BYTES, "post_processor": BYTES,
    "decoder": BYTES, "added_tokens": [{"id": 101, "content": "<end>", **ADDED}],
    "model": {"dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False,
              "vocab": {**LETTERS, "he": 100, "<end>": 101}, "merges": ["h e"]},
}  # fmt: skip
SPLIT = {"normalizers": [{"type": "Prepend", "prepend": "▁"},
                         {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}  # fmt: skip
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def made(said: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for name in above:
            said = said[name]
        said[last] = value

    return made


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.merges", [["h", "e"]]), ("model.type", "BPE"), ("pre_tokenizer", {**BYTES, "trim_offsets": False}),
        ("pre_tokenizer", {**BYTES, "use_regex": True}), ("decoder", {**BYTES, "add_prefix_space": True}), ("post_processor", None),
        ("padding", {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                     "pad_token": "<end>"}),
    ],
)  # fmt: skip
def test_another_spelling_is_the_same_tokenizer(path: str, value: Any):
    new = copy.deepcopy(OLD)
    change(path, value)(new)
    assert new != OLD
    assert same_tokenizer(new, OLD)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.merges", []), ("model.vocab.he", 102), ("normalizer", {"type": "Lowercase"}),
        ("pre_tokenizer", {**BYTES, "add_prefix_space": True}), ("pre_tokenizer", {"type": "Digits", "individual_digits": True}),
        ("added_tokens", []), ("model", {}), ("decoder", {"type": "Fuse"}),
    ],
)  # fmt: skip
def test_another_tokenizer_is_another(path: str, value: Any):
    new = copy.deepcopy(OLD)
    change(path, value)(new)
    assert not same_tokenizer(new, OLD)


def test_llamas_normalizer_and_the_metaspace_of_transformers_5_give_the_same_numbers():
    old = {
        **OLD,
        "pre_tokenizer": None,
        "normalizer": {"type": "Sequence", **SPLIT},
        "post_processor": None,
        "decoder": None,
    }
    new = {**old, "normalizer": None, "pre_tokenizer": METASPACE}
    assert same_tokenizer(new, old)
    assert not same_tokenizer({**new, "pre_tokenizer": {**METASPACE, "prepend_scheme": "never"}}, old)


def test_what_the_library_cannot_read_is_compared_as_it_stands():
    odd = {"model": {"type": "of tomorrow"}, "added_tokens": []}
    assert same_tokenizer(odd, dict(odd))
    assert not same_tokenizer(odd, {**odd, "decoder": {"type": "Fuse"}})
