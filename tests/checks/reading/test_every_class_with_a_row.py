"""What the generated rows say of every class is what its model says: built small, else from its default config with a few layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from bot.checks.reading.laid_out_skeleton import LaidOutSkeleton
from bot.checks.reading.layout_rows import ROWS
from bot.checks.reading.model_skeleton import BUILD_ERRORS, Skeleton
from bot.checks.reading.plain_skeleton import NotPlain
from tests.checks.reading.same_skeleton import hold
from tools.make_model_layouts import SECOND, few_layers
from tools.small_models import config_for

LINES = list(json.loads(ROWS.read_bytes())["classes"])  # NAME, or NAME 2 for its other layout
# Classes that have no small config which their row is for: a switch of a part is another one there, or nothing can be built of it.
FROM_THE_DEFAULT = {
    "BltForCausalLM",
    "EncoderDecoderModel",
    "KyutaiSpeechToTextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "MusicgenForConditionalGeneration",
    "MusicgenMelodyForConditionalGeneration",
    "PI0ForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
    "ReformerForMaskedLM",
    "ReformerForQuestionAnswering",
    "ReformerForSequenceClassification",
    "ReformerModel",
    "SpeechEncoderDecoderModel",
    "UltraVBertForMaskedLM",
    "UltraVBertForSequenceClassification",
    "UltraVBertForTokenClassification",
    "UltraVBertModel",
    "VisionEncoderDecoderModel",
}


def small(line: str) -> Any:
    """The small config."""
    name, _, second = line.partition(" ")
    return config_for(getattr(transformers, name), **(SECOND[name] if second else {}))


def default(line: str) -> Any:
    """The default one, with a few layers."""
    name, _, second = line.partition(" ")
    chosen = getattr(transformers, name)
    return chosen.config_class.from_dict(few_layers(chosen, bool(second)))


def both(line: str, made: Callable[[str], Any]) -> tuple[LaidOutSkeleton, Skeleton]:
    """By the row and by the model, over what transformers saves: tied weights once. Raises NotPlain and BUILD_ERRORS."""
    name = line.partition(" ")[0]
    config = made(line)
    config.architectures = [name]
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    own = {key: value for key, value in model.state_dict().items() if key not in tied}
    shapes = {key: tuple(value.shape) for key, value in revert_weight_conversion(model, own).items()}
    known = LaidOutSkeleton(name, json.loads(config.to_json_string()), shapes)
    assert known.symbolic
    return known, Skeleton(model, shapes)


@pytest.mark.parametrize("line", LINES)
def test_its_row_says_what_its_model_says(line: str):
    known, skeleton = both(line, default if line in FROM_THE_DEFAULT else small)
    hold(known, skeleton, all_of_it=False)


@pytest.mark.parametrize("line", sorted(FROM_THE_DEFAULT))
def test_those_built_from_the_default_have_to_be(line: str):
    with pytest.raises((NotPlain, AssertionError, *BUILD_ERRORS)):
        both(line, small)
