"""TRAINABLE_TOKENS: rows of an embedding that are replaced. What is saved are the rows' values, not differences."""

from __future__ import annotations

from bot.checks.expected.adapter_keys import names_in, read_key
from bot.checks.expected.changes import AdapterReading, Change
from bot.checks.expected.saved_tensors import SavedTensors
from bot.checks.reading.checkpoint import Place
from bot.records import Json

HARMLESS = frozenset({
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "token_indices", "init_weights",
})  # fmt: skip


def read(config: Json, tensors: dict[str, Place], parameters: object) -> AdapterReading:
    """Every trained row, and whatever else came along; anything unknown is a problem."""
    problems = [f"The adapter sets {key}, which this verifier does not know." for key, value in sorted(config.items())
                if key not in HARMLESS and value not in (None, False, [], {}, "")]  # fmt: skip
    saved_tensors = SavedTensors(config=config, indices=config.get("token_indices"))
    names = names_in(list(tensors))
    for key, place in tensors.items():
        named = read_key(key, names)
        said = saved_tensors.take(named, place) if named else f"{key} is no tensor that this verifier knows."
        problems += [said] if said else []
    changes: dict[str, list[Change]] = {}
    for parameter, change in saved_tensors.found():
        changes.setdefault(parameter, []).append(change)
    return AdapterReading(
        name="trainable tokens",
        changes={parameter: tuple(several) for parameter, several in changes.items()},
        unused=tuple(saved_tensors.unused),
        problems=tuple(problems),
        config=config,
    )
