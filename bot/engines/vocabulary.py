"""The adapter's tokenizer against the embedding: an id that has no row there is an error at every prompt that holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bot.errors import Refused
from bot.events import Emit, Note
from bot.records import AddDelta, Json, Local, PeftMerge, Plan, Replace, SetRows, plain_op

TOKENIZER = "tokenizer.json"


def compare_vocabulary(plan: Plan, inputs: Local, emit: Emit) -> None:
    """Raises Refused where the tokenizer that the adapter ships outgrows an embedding that the adapter trains; says so
    where it trains none. A base whose own tokenizer is as long is left alone."""
    ships = any(asset.name == TOKENIZER and asset.source == "adapter" for asset in plan.assets)
    rows = _rows(_config(plan, inputs.base))
    if not ships or rows is None:
        return
    count = _count_ids(inputs.adapter / TOKENIZER)
    if count <= rows or count <= _count_ids(inputs.base / TOKENIZER):
        return
    if _trains(plan, rows):
        raise Refused(
            f"The adapter's tokenizer has ids up to {count - 1}, and the merged model's embedding has {rows} rows: "
            "the rows of the new tokens were not saved.",
            remedy="Save the adapter again with save_embedding_layers=True, or ship the tokenizer that it was trained with.",
        )
    text = (
        f"The tokenizer has ids up to {count - 1} and the embedding {rows} rows: a later id is an error, merged or not."
    )
    emit(Note(text=text, level="warning"))


def _config(plan: Plan, base: Path) -> Json:
    content = next((asset.content for asset in plan.assets if asset.name == "config.json"), None)
    config: Json = json.loads(content if content is not None else (base / "config.json").read_bytes())
    return config


def _rows(config: Json) -> int | None:
    """The vocabulary's size, of the text model where there are several."""
    text = config.get("text_config")
    levels = (text if isinstance(text, dict) else {}, config)
    return next((level["vocab_size"] for level in levels if type(level.get("vocab_size")) is int), None)


def _count_ids(path: Path) -> int:
    """One more than the highest id of a tokenizer.json; 0 where there is none that can be read."""
    try:
        tokenizer: Any = json.loads(path.read_bytes())
        vocabulary = tokenizer["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return 1 + max([*ids, *(added["id"] for added in tokenizer.get("added_tokens") or ())], default=-1)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return 0


def _trains(plan: Plan, rows: int) -> bool:
    """Whether the adapter changes a tensor with a row for every token."""
    made = map(plain_op, plan.ops)
    return any(
        isinstance(op, AddDelta | Replace | SetRows | PeftMerge) and op.target.shape[:1] == (rows,) for op in made
    )
