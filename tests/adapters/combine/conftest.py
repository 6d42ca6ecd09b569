"""Two adapters that have as little in common as two adapters of one base can."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.adapters.combine.inputs import save


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ranks 2 and 4 (one module 1), alpha by root and by pattern, other targets, stored in bfloat16 and float16."""
    home = tmp_path_factory.mktemp("unlike")
    first = save(home / "a", seed=1, r=2, use_rslora=True, target_modules=["table", "first", "image"],
                 dtype=torch.bfloat16)  # fmt: skip
    second = save(home / "b", seed=2, r=4, rank_pattern={"second": 1}, alpha_pattern={"first": 9},
                  target_modules=["first", "second", "sound"], dtype=torch.float16)  # fmt: skip
    return [first, second]
