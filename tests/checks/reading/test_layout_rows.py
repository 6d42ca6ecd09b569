"""The rows of classes are read one at a time, and names as patterns."""

from __future__ import annotations

import json

import pytest

from bot.checks.reading.layout_rows import LEFT_OUT, ROWS, Patterns, class_for, config_for, has_a_head, rows_of, tasks

FILE = json.loads(ROWS.read_bytes())


def test_a_line_read_alone_is_the_row_that_the_file_has():
    for line, row in FILE["classes"].items():
        name, _, number = line.partition(" ")
        assert list(rows_of(name))[int(number or 1) - 1] == {**LEFT_OUT, **row}


@pytest.mark.parametrize("name", ["", "NoSuchModel", "T5ForConditionalGeneration 2", 'x": ', "types"])
def test_another_name_has_no_row(name: str):
    assert not list(rows_of(name))


def test_the_heading_is_read_alone_and_names_classes_that_have_a_row():
    assert tasks() == FILE["tasks"]
    assert all(name in FILE["classes"] for classes in tasks().values() for name in classes.values())
    assert class_for("SEQ_CLS", {"model_type": "bert"}) == "BertForSequenceClassification"
    assert class_for("CAUSAL_LM", {"model_type": "bert"}) is None
    assert has_a_head("ViTForImageClassification")
    assert not has_a_head("T5ForConditionalGeneration")


def test_a_config_chooses_between_two_rows_of_a_class():
    one, other = rows_of("T5ForConditionalGeneration")
    config = {"model_type": "t5"}
    gated = {**config, "feed_forward_proj": "gated-gelu"}
    assert [bool(config_for(row, config)) for row in (one, other)] == [True, False]
    assert [bool(config_for(row, gated)) for row in (one, other)] == [False, True]
    for strange in ({"feed_forward_proj": "gated-silu"}, {"model_type": "mt5"}, {"tie_word_embeddings": 1}):
        assert not any(config_for(row, config | strange) for row in (one, other))


def test_what_is_tied_whatever_the_config_says_is_tied():
    row = next(rows_of("T5ForConditionalGeneration"))
    for flag in ({}, {"tie_word_embeddings": False}):
        known = config_for(row, {"model_type": "t5", **flag})
        assert known is not None
        assert known[1]["encoder.embed_tokens.weight"] == "shared.weight"


def test_numbers_that_tell_things_apart_stay_in_a_pattern():
    patterns = Patterns(["layers.*.mlp.*", "proj.*"])
    assert patterns.of("layers.3.mlp.2.weight") == "layers.*.mlp.2.weight"
    assert patterns.of("proj.0.weight") == "proj.0.weight"
    assert patterns.numbers("layers.3.mlp.2.weight") == ["3"]
    assert patterns.fronts("layers.3.mlp.2.experts.5.w") == [("layers.*", 3), ("layers.*.mlp.2.experts.*", 5)]
    assert patterns.filled("blocks.*.fc.weight", "layers.3.mlp.2.weight") == "blocks.3.fc.weight"
