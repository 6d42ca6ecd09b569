"""An adapter's files as the verifier reads them: where each tensor lies, and which settings it does not know."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from bot.checkpoint.header import read_header
from bot.checks.reading.checkpoint import TensorRef
from bot.records import Json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def tensors_of(adapter: Path) -> dict[str, TensorRef]:
    """The tensors of an adapter's folder by their keys; only the header is read."""
    path = adapter / WEIGHTS
    return {stored.key: TensorRef(path=path, stored=stored) for stored in read_header(path).tensors}


def unknown_settings(config: Json, known: Collection[str]) -> list[str]:
    """A sentence for each field that is switched on and not among the known ones."""
    return [f"The adapter sets {key}, which this verifier does not know." for key, value in sorted(config.items())
            if key not in known and value not in (None, False, [], {}, "")]  # fmt: skip
