"""The merged model, loaded without peft and without network, against the unmerged one."""

from __future__ import annotations

import json
import math
import shutil
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
import torch

from bot.checks.behaviour.measure import distance
from bot.records import Report
from bot.verify import table
from tests.factory import save_adapter, save_base
from tests.faults import damage
from tests.faults.conftest import Builder, named, prove, statuses
from tests.faults.models import Built
from tests.steps import merge_folders

pytestmark = pytest.mark.slow

ARCHITECTURES = ("llama-tied-sharded", "gpt2-without-prefix", "vit", "t5")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_correct_merge_lies_within_the_noise_of_rounding(built: Builder, name: str):
    one = built(name)
    report = prove(one, one.merged, level="full")
    assert report.verdict == "verified", table(report)
    assert report.noise_floor is not None
    assert 0.2 < report.noise_floor["ratio"] < 0.8, "theory says 0.5"
    assert json.loads(report.document.canonical())["noise_floor"]["metric"] == report.noise_floor["metric"]


def full(llama: Built, copy: Path) -> Report:
    return prove(llama, copy, level="full")


def test_one_module_left_out_shows(llama: Built, copy: Path):
    damage.unmerged_loud_module(copy, llama)
    report = full(llama, copy)
    assert named(report, "behaviour").status == "fail", table(report)
    assert report.noise_floor is not None
    assert report.noise_floor["ratio"] > 2


def test_a_missing_tensor_does_not_load_in_silence(llama: Built, copy: Path):
    damage.dropped_tensor(copy, llama)
    report = full(llama, copy)
    assert named(report, "loads").status == "fail", table(report)
    assert "k_proj.weight is missing" in named(report, "loads").why


def test_an_unreadable_config_is_a_finding_not_a_crash(llama: Built, copy: Path):
    damage.in_config(model_type="no-such-model", architectures=["NoSuchModel"])(copy, llama)
    assert named(full(llama, copy), "loads").status == "fail"


def test_code_that_was_not_trusted_is_not_run(llama: Built, copy: Path, tmp_path: Path):
    changes = {"architectures": ["OwnForCausalLM"], "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}
    base = Path(shutil.copytree(llama.base, tmp_path / "base"))
    for folder in (base, copy):
        damage.in_config(**changes)(folder, llama)
        (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    report = prove(llama, copy, base=base, level="full")
    assert named(report, "loads").status == "skip", table(report)
    assert not (tmp_path / "ran").exists()


def test_a_wholly_zero_delta_does_not_divide_by_zero(llama: Built, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    adapter = Path(shutil.copytree(llama.adapter, tmp_path / "adapter"))
    path = adapter / "adapter_model.safetensors"
    save_file({key: value * 0 if "lora_B" in key else value for key, value in load_file(path).items()}, path)
    report = prove(llama, Path(shutil.copytree(llama.base, tmp_path / "same")), adapter=adapter, level="full")
    assert statuses(report, "fail", "skip", "warn") == {"effect": "fail"}, table(report)
    assert report.noise_floor is not None
    assert report.noise_floor["ratio"] == 0


def test_a_folder_that_cannot_be_read_is_not_run(llama: Built, copy: Path):
    damage.truncated_file(copy, llama)
    report = full(llama, copy)
    assert named(report, "loads").status == named(report, "behaviour").status == "skip"
    assert report.noise_floor is None


def test_outputs_that_are_not_finite_are_a_finding_not_a_crash(llama: Built, tmp_path: Path):
    """A base whose last norm is so large that its logits overflow float32."""
    folder = tmp_path / "inputs"
    base = save_base("llama", folder / "base")
    adapter = save_adapter(base, "llama", folder / "adapter")

    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"].fill_(3e38)

    damage.rewrite(base / "model.safetensors", enlarge)
    merged = merge_folders(base, adapter, tmp_path / "merged")
    report = prove(llama, merged, base=base, adapter=adapter, dtype="auto", level="full")
    assert (
        named(report, "behaviour").why
        == "The unmerged model's outputs are NaN or infinite: there is nothing to compare."
    )
    assert (named(report, "behaviour").status, report.verdict, report.noise_floor) == ("fail", "not-verified", None)
    assert json.loads(report.document.canonical())["noise_floor"] is None


@pytest.mark.parametrize("size", [1e-7, 1e-3, 1.0, 30.0])
def test_the_distance_is_the_kl_divergence(size: float):
    torch.manual_seed(0)
    wanted = torch.randn(40, 64, dtype=torch.float64)
    found = wanted + size * torch.randn(40, 64, dtype=torch.float64)
    p, q = (one.log_softmax(-1) for one in (wanted, found))
    textbook = float((p.exp() * (p - q)).sum())
    assert distance("kl", wanted, found).far == pytest.approx(textbook, rel=1e-3 if size < 1e-6 else 1e-9)


@pytest.mark.parametrize(("size", "error"), [(1e-6, 1e-9), (1e-4, 1e-11), (5e-3, 1e-12)])
def test_the_distance_of_answers_that_are_nearly_the_same_is_exact(size: float, error: float):
    """In decimals of fifty digits: around where a series takes over."""
    torch.manual_seed(1)
    wanted = torch.randn(6, 50)
    found = wanted + size * torch.randn(6, 50)
    with localcontext() as context:
        context.prec = 50
        exact = sum(map(divergence, wanted.tolist(), found.tolist()))
    assert distance("kl", wanted, found).far == pytest.approx(float(exact), rel=error, abs=0)


def divergence(wanted: list[float], found: list[float]) -> Decimal:
    """KL of one token's answers, by its definition."""
    p, q = ([Decimal(logit).exp() for logit in logits] for logits in (wanted, found))
    return sum((a / sum(p)) * ((a / sum(p)).ln() - (b / sum(q)).ln()) for a, b in zip(p, q, strict=True))


def test_answers_that_are_ruled_out_count_by_what_the_other_gives_them():
    wanted, found = torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([[0.0, 0.0, 0.0]])
    assert distance("kl", wanted, found).far == pytest.approx(math.log(1.5))
    assert distance("kl", wanted, wanted).far == 0.0


def test_the_distance_of_certain_and_opposite_answers_is_finite():
    wanted, found = torch.tensor([[0.0, 3000.0]]), torch.tensor([[3000.0, 0.0]])
    assert distance("kl", wanted, found).far == pytest.approx(3000.0)


THIEF = """
import atexit, pathlib
from transformers import LlamaForCausalLM
for name in {targets}:
    def spoil(path=pathlib.Path(name)):
        try: path.write_text("{{}}")
        except OSError: pass
    spoil() if name.endswith("ran") else atexit.register(spoil)
class OwnForCausalLM(LlamaForCausalLM): pass
"""


def test_trusted_code_of_the_base_runs_and_changes_nothing_that_is_judged(llama: Built, copy: Path, tmp_path: Path):
    changes = {"architectures": ["OwnForCausalLM"], "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}
    base = Path(shutil.copytree(llama.base, tmp_path / "base"))
    for folder in (base, copy):
        damage.in_config(**changes)(folder, llama)
        targets = [str(copy / "config.json"), str(base / "config.json"), str(copy / "ran")]
        (folder / "modeling_own.py").write_text(THIEF.format(targets=targets))
    before = (copy / "config.json").read_bytes()
    report = prove(llama, copy, base=base, level="full", trust_remote_code=True)
    if (copy / "config.json").read_bytes() == before:
        # The kernel kept it from writing (Landlock): what it tried came to nothing, and the merge is what it is.
        assert not (copy / "ran").exists()
        assert named(report, "loads").status == "pass", table(report)
        assert report.noise_floor is not None
    else:
        assert "the repo's own code changed" in named(report, "loads").why


def test_code_that_is_not_the_bases_is_not_run_even_when_trusted(llama: Built, copy: Path, tmp_path: Path):
    changes = {"architectures": ["OwnForCausalLM"], "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}
    base = Path(shutil.copytree(llama.base, tmp_path / "base"))
    for folder in (base, copy):
        damage.in_config(**changes)(folder, llama)
        (folder / "modeling_own.py").write_text(THIEF.format(targets=[]))
    (copy / "modeling_own.py").write_text("raise SystemExit('this ran')")
    report = prove(llama, copy, base=base, level="full", trust_remote_code=True)
    assert named(report, "loads").status == "skip", table(report)
    assert "modeling_own.py is not the base's" in named(report, "loads").why
