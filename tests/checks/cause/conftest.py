"""Each model is built once per worker."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from tests.checks.cause import planted
from tests.faults import family, models
from tests.faults.family import FAMILY
from tests.faults.models import Built


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models; more threads than cores only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models_built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """A model, its adapter and a correct merge, by the recipe's or the kin's name."""

    @cache
    def build(name: str) -> Built:
        root = tmp_path_factory.mktemp(name)
        return family.build(FAMILY[name], root) if name in FAMILY else models.build(planted.RECIPES[name], root)

    return build
