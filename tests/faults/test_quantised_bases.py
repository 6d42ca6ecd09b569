"""A merge into what a quantised base means is proven by the libraries that define its form; each fault is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bot.records import Report
from bot.verify import table
from tests.faults import damage, models, quantised
from tests.faults.conftest import named, prove, statuses
from tests.faults.quantised import FORMS, Quantised

K0, Q0 = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "kq")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Quantised]:
    """A quantised base, its adapter and a correct merge, by the form's name."""
    return cache(lambda name: quantised.build(name, tmp_path_factory.mktemp(name)))


def proven(one: Quantised, folder: Path, **changes: object) -> Report:
    return prove(one.as_built(), folder, **{"dtype": "auto", **changes})


@pytest.mark.parametrize("name", FORMS)
def test_a_correct_merge_passes(made: Callable[[str], Quantised], name: str):
    one = made(name)
    report = proven(one, one.merged)
    assert report.verdict == "verified", table(report)
    assert not statuses(report, "warn", "fail", "skip"), table(report)


def rewrite(folder: Path, **tensors: torch.Tensor) -> None:
    damage.rewrite(folder / "model.safetensors", lambda held: held.update(tensors))


def stale_config(folder: Path, one: Quantised) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantised.NF4
    (folder / "config.json").write_text(json.dumps(config))


def part_left_over(folder: Path, one: Quantised) -> None:
    rewrite(folder, **{f"{K0}.absmax": load_file(one.base / "model.safetensors")[f"{K0}.absmax"]})


def wrong_block(folder: Path, one: Quantised) -> None:
    """As if one block's absmax were its neighbour's."""
    weight = load_file(one.dense / "model.safetensors")[K0].clone()
    weight.view(-1, 64)[3] *= 1.01
    rewrite(folder, **{K0: models.round_by_trial(weight.double(), torch.bfloat16)})


def rounded_twice(folder: Path, one: Quantised) -> None:
    weight = load_file(one.dense / "model.safetensors")[K0]
    rewrite(folder, **{K0: weight.half().to(torch.bfloat16)})


def touched_rounded_first(folder: Path, one: Quantised) -> None:
    weight = load_file(one.dense / "model.safetensors")[Q0]
    rewrite(folder, **{Q0: (weight.bfloat16().double() + quantised.deltas(one)[Q0]).to(torch.bfloat16)})


def into_the_original(folder: Path, one: Quantised) -> None:
    changes = quantised.deltas(one)
    tensors = load_file(one.original / "model.safetensors")
    rewrite(folder, **{key: models.round_by_trial(tensors[key].double() + changes.get(key, 0.0), torch.bfloat16)
                       for key in tensors})  # fmt: skip


def swapped_nibbles(folder: Path, one: Quantised) -> None:
    weight = load_file(one.dense / "model.safetensors")[K0].clone()
    weight.view(-1)[6], weight.view(-1)[7] = weight.view(-1)[7].item(), weight.view(-1)[6].item()
    rewrite(folder, **{K0: models.round_by_trial(weight.double(), torch.bfloat16)})


FAULTS: dict[str, tuple[Callable[[Path, Quantised], None], tuple[str, ...]]] = {
    "a stale quantization_config": (stale_config, ("config",)),
    "a packed part left over": (part_left_over, ("keys",)),
    "a wrong block's absmax": (wrong_block, ("untouched", "coverage")),
    "an untouched packed tensor rounded twice": (rounded_twice, ("untouched",)),
    "the base rounded before the delta is added": (touched_rounded_first, ("touched",)),
    "merged into the original": (into_the_original, ("touched", "untouched")),
    "two nibbles swapped": (swapped_nibbles, ("untouched",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_is_caught(made: Callable[[str], Quantised], tmp_path: Path, fault: str):
    one = made("nf4")
    folder = one.as_built().fresh(tmp_path / "merged")
    plant, expected = FAULTS[fault]
    plant(folder, one)
    report = proven(one, folder)
    assert report.verdict == "not-verified"
    assert {id: named(report, id).status for id in expected} == dict.fromkeys(expected, "fail"), table(report)
