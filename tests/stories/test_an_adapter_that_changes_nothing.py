"""An adapter that changes nothing is refused before a byte is written, fails every proof, and is called what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.factory import save_adapter, save_base
from tests.stories.conftest import Command, Ran

Tensors = dict[str, torch.Tensor]
Edit = Callable[[Tensors, dict[str, object], Tensors], object]  # the adapter's tensors, its config, the base's tensors
ZERO, LOST = "every delta is exactly zero", "none of its deltas survives "


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, a trained LoRA on it); the base holds a −0, which becomes 0 where 0 is added."""
    root = tmp_path_factory.mktemp("nothing")
    base = save_base("llama", root / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = -0.0
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    return base, save_adapter(base, "llama", root / "trained")


@pytest.fixture
def edited(tiny: tuple[Path, Path], tmp_path: Path) -> Callable[[Edit], Path]:
    def edit(change: Edit) -> Path:
        folder = Path(shutil.copytree(tiny[1], tmp_path / "adapter", dirs_exist_ok=True))
        path = folder / "adapter_model.safetensors"
        tensors, config = load_file(path), json.loads((folder / "adapter_config.json").read_text())
        change(tensors, config, load_file(tiny[0] / "model.safetensors"))
        save_file(tensors, path, metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return edit


def times(factor: float) -> Edit:
    """Every B times a factor; the row that meets the base's −0, where any number would survive, is zero."""

    def scale(tensors: Tensors, config: dict[str, object], base: Tensors) -> None:
        tensors.update({key: value * factor for key, value in tensors.items() if "lora_B" in key})
        tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"][0] = 0

    return scale


def one_small_number(tensors: Tensors, config: dict[str, object], base: Tensors) -> None:
    """Added to the smallest number of a row: too small for another code, and no block's largest number."""
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    times(0)(tensors, config, base)
    tensors[name.format("B")][5, 0] = 2e-6
    tensors[name.format("A")][0] = 0
    tensors[name.format("A")][0, base["model.layers.0.mlp.up_proj.weight"][5].abs().argmin()] = 1


def every_a_zero(tensors: Tensors, config: dict[str, object], base: Tensors) -> None:
    tensors.update({key: value * 0 for key, value in tensors.items() if "lora_A" in key})


def dora_as_it_begins(tensors: Tensors, config: dict[str, object], base: Tensors) -> None:
    """PEFT starts with m = ‖W‖, as float32 has it, and B = 0."""
    times(0)(tensors, config, base)
    config["use_dora"] = True
    for key in [key for key in tensors if "lora_A" in key]:
        weight = base[key.removeprefix("base_model.model.").replace(".lora_A", "")]
        tensors[key.replace("lora_A.weight", "lora_magnitude_vector")] = weight.float().norm(dim=1)


def a_saved_norm_as_it_was(tensors: Tensors, config: dict[str, object], base: Tensors) -> None:
    times(0)(tensors, config, base)
    config["modules_to_save"] = ["norm"]
    tensors["base_model.model.model.norm.weight"] = base["model.norm.weight"].clone()


def a_saved_norm_that_was_trained(tensors: Tensors, config: dict[str, object], base: Tensors) -> None:
    a_saved_norm_as_it_was(tensors, config, base)
    tensors["base_model.model.model.norm.weight"][3] += 1


def one_b_that_was_trained(tensors: Tensors, config: dict[str, object], base: Tensors) -> None:
    """Gemma 4 has layers whose k and v are never called: their B stay at zero."""
    for key in sorted(key for key in tensors if "lora_B" in key)[1:]:
        tensors[key].zero_()


def tokens(change: float) -> Edit:
    def tokens_alone(tensors: Tensors, config: dict[str, object], base: Tensors) -> None:
        rows = base["model.embed_tokens.weight"][[3, 7]].float() + change
        tensors.clear()
        tensors["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"] = rows
        config.clear()
        config |= {"peft_type": "TRAINABLE_TOKENS", "token_indices": [3, 7], "target_modules": ["embed_tokens"]}

    return tokens_alone


def ia3(value: float) -> Edit:
    """A method that PEFT merges; it begins with ones."""

    def scaled(tensors: Tensors, config: dict[str, object], base: Tensors) -> None:
        tensors.clear()
        config.clear()
        config |= {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []}
        for layer in (0, 1):
            name = f"base_model.model.model.layers.{layer}.self_attn.k_proj.ia3_l"
            tensors[name] = torch.full((32, 1), value)

    return scaled


def merge(run: Command, base: Path, adapter: Path, output: Path, *more: str) -> Ran:
    return run("merge", adapter, "--base", base, "--output", output, "--verify", "files", "--quiet", *more)


REFUSED: dict[str, tuple[Edit, str, str, tuple[str, ...]]] = {
    "every B zero": (times(0), ZERO, "Merge the trained checkpoint", ()),
    "every B zero, to float32": (times(0), ZERO, "Merge the trained checkpoint", ("--dtype", "float32")),
    "every B zero, to nf4": (times(0), ZERO, "Merge the trained checkpoint", ("--quantize", "nf4")),
    "every B zero, onto simulated nf4": (times(0), ZERO, "trained checkpoint", ("--base-weights", "simulate-nf4")),
    "every A zero": (every_a_zero, ZERO, "Merge the trained checkpoint", ()),
    "too small for bfloat16": (times(1e-10), LOST + "bfloat16", "or choose --dtype float32, which would keep", ()),
    "too small for nf4": (times(1e-10), LOST + "nf4", "--quantize none and --dtype float32, which", ("--quantize", "nf4")),
    "too small for nf4 alone": (one_small_number, LOST + "nf4", "--quantize none, which would keep", ("--quantize", "nf4")),
    "too small for anything": (times(1e-30), LOST + "float32", "no other dtype", ("--dtype", "float32")),
    "a DoRA as it begins": (dora_as_it_begins, LOST + "bfloat16", "Merge the trained checkpoint", ()),
    "a saved module as it was": (a_saved_norm_as_it_was, ZERO, "Merge the trained checkpoint", ()),
    "tokens as they were": (tokens(0.0), ZERO, "Merge the trained checkpoint", ()),
    "a method that PEFT merges": (ia3(1.0), ZERO, "Merge the trained checkpoint", ()),
    "that, too small for bfloat16": (ia3(1 + 2**-20), LOST + "bfloat16", "--dtype float32", ()),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_and_the_sentence_says_which_kind_it_is(
    tiny: tuple[Path, Path], edited: Callable[[Edit], Path], adapter_merge: Command, tmp_path: Path, case: str
):
    change, words, remedy, options = REFUSED[case]
    ran = merge(adapter_merge, tiny[0], edited(change), tmp_path / "merged", *options)
    assert ran.code == 3, ran.err
    assert words in ran.err, ran.err
    assert remedy in ran.err, ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"], "something was left"


CHANGED: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "a saved module that was trained": (a_saved_norm_that_was_trained, ()),
    "one B that was trained": (one_b_that_was_trained, ()),
    "too small for bfloat16, to float32": (times(1e-10), ("--dtype", "float32")),
    "tokens that were trained": (tokens(0.5), ()),
    "a method that PEFT merges": (ia3(1.5), ()),
}


@pytest.mark.parametrize("case", CHANGED)
def test_what_changes_something_is_merged(
    tiny: tuple[Path, Path], edited: Callable[[Edit], Path], adapter_merge: Command, tmp_path: Path, case: str
):
    change, options = CHANGED[case]
    ran = merge(adapter_merge, tiny[0], edited(change), tmp_path / "merged", *options)
    assert ran.code == 0, ran.err


def test_machines_are_told_by_a_code(
    tiny: tuple[Path, Path], edited: Callable[[Edit], Path], adapter_merge: Command, tmp_path: Path
):
    ran = merge(adapter_merge, tiny[0], edited(times(0)), tmp_path / "merged", "--json")
    assert json.loads(ran.out)["error"]["code"] == "changes-nothing"


def test_adapters_that_cancel_each_other_are_refused(tiny: tuple[Path, Path], adapter_merge: Command, tmp_path: Path):
    base, adapter = tiny
    asked = ("--base", base, "--output", tmp_path / "merged", "--verify", "files", "--combine", "linear")
    ran = adapter_merge("merge", adapter, adapter, *asked, "--weights", "1,-1")
    assert (ran.code, "The adapter changes nothing" in ran.err) == (3, True), ran.err


def test_with_force_it_is_made_and_its_card_says_what_it_is(
    tiny: tuple[Path, Path], edited: Callable[[Edit], Path], adapter_merge: Command, tmp_path: Path
):
    base, adapter, output = tiny[0], edited(times(0)), tmp_path / "merged"
    ran = adapter_merge("merge", adapter, "--base", base, "--output", output, "--verify", "weights", "--force")
    assert ran.code == 0, ran.err
    card = (output / "README.md").read_text()
    assert "this is the base under another name" in card
    assert "proven" not in card.split("## Load it")[0]
    inputs = ("--base", base, "--adapter", adapter, "--verify", "weights")
    ran = adapter_merge("verify", output, *inputs)
    assert (ran.code, "effect: The adapter changes nothing: every delta is exactly zero." in ran.err) == (4, True)
    assert adapter_merge("verify", output, *inputs, "--force").code == 0


def test_somebody_elses_merge_of_it_is_not_verified(
    tiny: tuple[Path, Path], edited: Callable[[Edit], Path], adapter_merge: Command
):
    ran = adapter_merge("verify", tiny[0], "--base", tiny[0], "--adapter", edited(times(1e-10)), "--verify", "weights")
    assert ran.code == 4
    assert "effect: The adapter changes nothing: none of its deltas survives bfloat16." in ran.err
    assert "float32 would keep some of them" in ran.err
