"""TRAINABLE_TOKENS: rows of an embedding that are replaced. What is saved are the rows' values, not differences."""

from __future__ import annotations

from bot.checks.expected.adapter_files import unknown_settings
from bot.checks.expected.changes import AdapterReading
from bot.checks.expected.saved_tensors import SavedTensors
from bot.checks.reading.checkpoint import TensorRef
from bot.records import Json

HARMLESS = frozenset({
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "token_indices", "init_weights",
})  # fmt: skip


def read(config: Json, tensors: dict[str, TensorRef], parameters: object) -> AdapterReading:
    """Every trained row, and whatever else came along; anything unknown is a problem."""
    saved_tensors = SavedTensors(config=config, indices=config.get("token_indices"))
    problems = unknown_settings(config, HARMLESS) + saved_tensors.take_all(tensors)
    return saved_tensors.reading("trainable tokens", problems)
