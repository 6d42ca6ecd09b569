"""A merge that is stored quantised is held to what the form's own library makes of the exact merge; each fault is named."""

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
from tests.faults.quantised import Quantised

K0, Q0 = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "kq")
NAMES = ("nf4", "fp4", "int8", "fp8")


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    """A plain base in bfloat16 (`original`), and an adapter."""
    return quantised.build("nf4", tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="session")
def stored(one: Quantised, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The merge into the plain base, stored in the form of that name."""
    root = tmp_path_factory.mktemp("stored")
    return cache(lambda name: quantised.store(one, quantised.exact_merge(one, one.original), name, root / name))


def proven(one: Quantised, folder: Path, name: str, **changes: object) -> Report:
    given = {"base": one.original, "dtype": "auto", "quantize": name, **changes}
    return prove(one.as_built(), folder, **given)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_library_makes_of_the_exact_merge_passes(one: Quantised, stored: Callable[[str], Path], name: str):
    report = proven(one, stored(name), name)
    assert report.verdict == "verified", table(report)
    assert not statuses(report, "warn", "fail", "skip"), table(report)
    found = named(report, "quantised")
    assert found.measured == "14 weights"
    assert "‖W − Wq‖ is" in found.worst[0]


def rewrite(folder: Path, **tensors: torch.Tensor) -> None:
    damage.rewrite(folder / "model.safetensors", lambda held: held.update(tensors))


def from_the_rounded_merge(folder: Path, one: Quantised) -> None:
    exact = quantised.exact_merge(one, one.original)[Q0]
    rewrite(folder, **quantised.nf4(Q0, models.round_by_trial(exact, torch.bfloat16))[0])


def swapped_nibble(folder: Path, one: Quantised) -> None:
    codes = load_file(folder / "model.safetensors")[K0].clone()
    at = int((codes.view(-1) >> 4 != (codes.view(-1) & 15)).nonzero()[0])
    byte = int(codes.view(-1)[at])
    codes.view(-1)[at] = (byte & 15) << 4 | byte >> 4
    rewrite(folder, **{K0: codes})


def wrong_absmax(folder: Path, one: Quantised) -> None:
    absmax = load_file(folder / "model.safetensors")[f"{K0}.absmax"].clone()
    absmax[2] ^= 1
    rewrite(folder, **{f"{K0}.absmax": absmax})


def other_mean(folder: Path, one: Quantised) -> None:
    """All of it consistent, but the mean of double quantisation is no mean."""
    from bitsandbytes import functional

    exact = quantised.exact_merge(one, one.original)[K0].float()
    _, plain = functional.quantize_4bit(exact, quant_type="nf4")
    offset = plain.absmax.mean() * 1.0001
    absmax, outer = functional.quantize_blockwise(plain.absmax - offset, blocksize=256)
    state = functional.QuantState(absmax=absmax, shape=exact.shape, dtype=torch.float32, blocksize=64, code=plain.code,
                                  quant_type="nf4", offset=offset, state2=outer)  # fmt: skip
    rewrite(folder, **{f"{K0}.{name}": value for name, value in state.as_dict(packed=True).items()})


def unmerged(folder: Path, one: Quantised) -> None:
    rewrite(folder, **quantised.nf4(Q0, load_file(one.original / "model.safetensors")[Q0].float())[0])


def left_plain(folder: Path, one: Quantised) -> None:
    def change(held: dict[str, torch.Tensor]) -> None:
        for key in [one for one in held if one.startswith(K0)]:
            del held[key]
        held[K0] = load_file(one.original / "model.safetensors")[K0]

    damage.rewrite(folder / "model.safetensors", change)


def head_too(folder: Path, one: Quantised) -> None:
    head = load_file(one.original / "model.safetensors")["lm_head.weight"]
    rewrite(folder, **quantised.nf4("lm_head.weight", head.float())[0])


def no_config(folder: Path, one: Quantised) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))


FAULTS: dict[str, tuple[Callable[[Path, Quantised], None], tuple[str, ...]]] = {
    "quantised from the rounded merge": (from_the_rounded_merge, ("quantised",)),
    "a swapped nibble": (swapped_nibble, ("quantised",)),
    "a wrong block's absmax": (wrong_absmax, ("quantised",)),
    "a mean that is none": (other_mean, ("quantised",)),
    "a weight that was not merged": (unmerged, ("quantised",)),
    "a weight left plain": (left_plain, ("quantised",)),
    "the head quantised too": (head_too, ("quantised",)),
    "no quantization_config": (no_config, ("config", "quantised")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_is_caught(one: Quantised, stored: Callable[[str], Path], tmp_path: Path, fault: str):
    import shutil

    folder = Path(shutil.copytree(stored("nf4"), tmp_path / "merged"))
    plant, expected = FAULTS[fault]
    plant(folder, one)
    report = proven(one, folder, "nf4")
    assert report.verdict == "not-verified"
    assert {id: named(report, id).status for id in expected} == dict.fromkeys(expected, "fail"), table(report)


def test_another_form_than_the_one_asked_for_is_caught(one: Quantised, stored: Callable[[str], Path]):
    found = named(proven(one, stored("fp4"), "nf4"), "quantised")
    assert found.status == "fail"
    assert "stored as fp4, not as nf4" in found.why
