"""Each model is built once per worker; a test takes a copy and damages it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from bot.events import silent
from bot.records import Finding, Report
from bot.report_document import InputPins, MergeFacts
from bot.verify import Subject, verify
from tests.faults.models import RECIPES, Built, build

INPUTS = {"base": {"repo": "o/base", "sha": "b" * 40}, "adapter": {"repo": "o/adapter", "sha": "a" * 40}, "recipe": "1"}

Builder = Callable[[str], Built]
Prover = Callable[..., Report]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models; more threads than cores only wait for each other. The workers inherit the variable."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """A model, its adapter and a correct merge, by the recipe's name."""
    return cache(lambda name: build(RECIPES[name], tmp_path_factory.mktemp(name)))


@pytest.fixture
def llama(built: Builder) -> Built:
    """The model that most faults are planted in: tied, sharded, bfloat16, with a tokenizer."""
    return built("llama-tied-sharded")


@pytest.fixture
def copy(llama: Built, tmp_path: Path) -> Path:
    """A correct merge of it, free to be damaged."""
    return llama.fresh(tmp_path / "merged")


def claim(base: Path, adapter: Path, folder: Path, **changes: Any) -> Subject:
    """A merge of two folders that claims to be ours, at level weights."""
    given = {
        "folder": folder, "base": base, "adapter": adapter, "inputs": InputPins.of(INPUTS), "recorded": None,
        "merge": MergeFacts.of({"method": "LoRA"}), "dtype": "auto", "ours": True, "level": "weights", "not_run": (),
        "trust_remote_code": False,
    }  # fmt: skip
    return Subject(**(given | changes))


def subject(built: Built, folder: Path, **changes: Any) -> Subject:
    """The same of what was built by a recipe."""
    given = {"base": built.base, "adapter": built.adapter, "folder": folder, "dtype": built.recipe.to}
    return claim(**(given | changes))


def prove(built: Built, folder: Path, **changes: Any) -> Report:
    return verify(subject(built, folder, **changes), silent)


def named(report: Report, id: str) -> Finding:
    return next(one for one in report.findings if one.id == id)


def statuses(report: Report, *which: str) -> dict[str, str]:
    """{check: status} of the findings that have one of the statuses given."""
    return {one.id: one.status for one in report.findings if one.status in which}
