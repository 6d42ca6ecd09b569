"""A merge into what a quantised base means is proven by the libraries that define its form; each fault is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

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


# --- simulate-nf4 -----------------------------------------------------------------------------------------------------------

SIMULATED = {"base_weights": "simulate-nf4", "quantization": {}}


def simulated(one: Quantised, folder: Path, keys: Callable[[str], bool] = lambda key: ".layers." in key) -> Path:
    """The merge into the original, where bitsandbytes has held the matrices named."""
    tensors = {
        key: quantised.nf4(key, weight)[1] if keys(key) and weight.dim() == 2 else weight.float()
        for key, weight in load_file(one.original / "model.safetensors").items()
    }
    dense = quantised.copied(one.original, folder.with_name(f"{folder.name}-dense"), tensors)
    return quantised.merge(one, dense, folder)


def proven_simulated(one: Quantised, folder: Path, **changes: object) -> Report:
    return prove(one.as_built(), folder, **{"base": one.original, "dtype": "auto", **SIMULATED, **changes})


def test_a_simulation_of_what_bitsandbytes_would_hold_passes(made: Callable[[str], Quantised], tmp_path: Path):
    report = proven_simulated(made("nf4"), simulated(made("nf4"), tmp_path / "merged"))
    assert report.verdict == "verified", table(report)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_simulation_of_what_bitsandbytes_would_leave_alone_is_caught(
    made: Callable[[str], Quantised], tmp_path: Path, name: str
):
    folder = simulated(made("nf4"), tmp_path / "merged", lambda key: ".layers." in key or key == name)
    report = proven_simulated(made("nf4"), folder)
    assert named(report, "untouched").status == "fail", table(report)
    assert name in named(report, "untouched").why


def test_a_module_that_was_to_be_skipped_and_was_not_is_caught(made: Callable[[str], Quantised], tmp_path: Path):
    folder = simulated(made("nf4"), tmp_path / "merged")
    settings = {"llm_int8_skip_modules": "lm_head, model.layers.1"}
    report = proven_simulated(made("nf4"), folder, quantization=settings)
    assert named(report, "touched").status == "fail", table(report)
    right = simulated(made("nf4"), tmp_path / "right", lambda key: ".layers.0." in key)
    assert proven_simulated(made("nf4"), right, quantization=settings).verdict == "verified"


def test_single_quantisation_where_double_was_claimed_is_caught(made: Callable[[str], Quantised], tmp_path: Path):
    folder = simulated(made("nf4"), tmp_path / "merged")
    report = proven_simulated(made("nf4"), folder, quantization={"bnb_4bit_use_double_quant": False})
    assert named(report, "touched").status == named(report, "untouched").status == "fail", table(report)


def test_a_merge_into_the_plain_base_where_a_simulation_was_claimed_is_caught(
    made: Callable[[str], Quantised], tmp_path: Path
):
    folder = quantised.merge(made("nf4"), made("nf4").original, tmp_path / "merged")
    assert named(proven_simulated(made("nf4"), folder), "touched").status == "fail"


def test_the_mean_is_within_what_threads_make_of_it():
    """bitsandbytes' own, on any number of threads, differs from the exact one by less than is allowed."""
    from bot.checks.reading.bitsandbytes_cpu import exact_mean, is_a_mean

    torch.manual_seed(0)
    absmax = torch.rand(3_000_001) * 0.1
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert is_a_mean(float(absmax.mean()), absmax)
    finally:
        torch.set_num_threads(before)
    assert not is_a_mean(float(exact_mean(absmax)) * (1 + 1e-5), absmax)


# --- forms that a tiny Llama has not ------------------------------------------------------------------------------------


def test_blocks_that_end_inside_a_row_are_taken_in_order(tmp_path: Path):
    """bitsandbytes' AVX512 kernel takes wrong ones there; its plain kernel is asked."""
    from bitsandbytes import functional

    from bot.checks.reading.checkpoint import read_checkpoint
    from bot.checks.reading.quantised import as_model

    torch.manual_seed(0)
    weight = torch.randn(6, 96)
    codes, state = functional.quantize_4bit(weight, quant_type="nf4")
    tensors = {"a.weight": codes, **{f"a.weight.{name}": one for name, one in state.as_dict(packed=True).items()}}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    place = as_model(read_checkpoint(tmp_path), {"quantization_config": quantised.NF4}, "base").tensors["a.weight"]
    assert place.packed is not None
    found = place.packed.slab().view(6, 96)
    levels = state.code[torch.stack([codes.view(-1) >> 4, codes.view(-1) & 15], 1).view(-1).int()]
    assert torch.equal(found.view(-1), (levels.view(-1, 64) * state.absmax[:, None]).view(-1))


def test_an_expert_of_mxfp4_is_what_transformers_makes_of_it(tmp_path: Path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    from bot.checks.reading.checkpoint import read_checkpoint
    from bot.checks.reading.quantised import as_model
    from bot.checks.reading.rows import Opened

    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (3, 64, 2, 16), dtype=torch.uint8)
    scales = torch.randint(110, 130, (3, 64, 2), dtype=torch.uint8)
    tensors = {
        "mlp.experts.down_proj_blocks": blocks,
        "mlp.experts.down_proj_scales": scales,
        "n.weight": torch.ones(3),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    said = {"quantization_config": {"quant_method": "mxfp4"}}
    model = as_model(read_checkpoint(tmp_path), said, "base")
    assert set(model.tensors) == {"mlp.experts.down_proj", "n.weight"}
    whole = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    with Opened() as opened:
        found = opened.rows(
            model.tensors["mlp.experts.down_proj"], 50, 150, (3 * 64, 64)
        )  # across the seam of two experts
    assert torch.equal(torch.from_numpy(found), whole.reshape(3 * 64, 64)[50:150])


TORCHAO = Path(__file__).parents[1] / "formats" / "torchao"


@pytest.mark.parametrize("name", sorted(path.name for path in TORCHAO.iterdir()))
def test_weights_of_torchao_are_what_torchao_made_of_them(name: str):
    import hashlib

    from bot.checks.reading.checkpoint import read_checkpoint
    from bot.checks.reading.quantised import as_model

    folder = TORCHAO / name
    model = as_model(read_checkpoint(folder), json.loads((folder / "config.json").read_text()), "base")
    found = {
        key: hashlib.sha256(place.packed.slab().numpy().tobytes()).hexdigest()
        for key, place in model.tensors.items()
        if place.packed
    }
    assert found == json.loads((folder / "expected.json").read_text())
    assert not any("._weight" in key for key in model.tensors)
