"""A proven merge of a small model, its report, and statements about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot.attestation import attest
from bot.records import Report
from bot.report_document import MergeFacts
from bot.verify import write
from tests.faults.conftest import built, copy, llama, one_thread, prove
from tests.faults.models import Built

__all__ = ["built", "copy", "llama", "one_thread"]

STARTED = "2026-01-02T03:04:05Z"
HUB = "https://huggingface.co"
MERGE = MergeFacts.of(
    {
        "method": "LoRA",
        "engine": "streaming",
        "dtype": "bfloat16",
        "fingerprint": "f" * 64,
        "target": "o/merged",
        "options": {"dtype": "auto", "quantize": "none"},
    }
)
Attest = Callable[..., Path]


@pytest.fixture
def report(llama: Built, copy: Path) -> Report:
    """Of the merge in `copy`, with its verification.json in the folder."""
    made = prove(llama, copy, level="files", merge=MERGE)
    write(made, copy)
    return made


@pytest.fixture
def attested(report: Report, copy: Path, tmp_path: Path) -> Path:
    """The statements that `merge` writes of it."""
    path = tmp_path / "merge.intoto.jsonl"
    attest(path, copy, report, HUB, STARTED)
    return path


def statements(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same statements, each changed."""
    lines = statements(path)
    for line in lines:
        change(line)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path
