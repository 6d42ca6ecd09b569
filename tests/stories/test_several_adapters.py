"""Several adapters in one model, proven against PEFT's unmerged one; and one base with a model for each adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.factory import save_adapter, save_card
from tests.house.test_floors import heavy_imports
from tests.stories.conftest import Command, World, name_base
from tests.stories.test_bad_input import assert_nothing_left, assert_said

KINDS = [
    ("cat", ()),
    ("linear", ()),
    ("svd", ("--rank", "5")),
    ("ties", ("--density", "0.7")),
    ("dare_linear", ("--density", "0.7", "--seed", "3")),
    ("dare_ties", ("--seed", "3", "--majority-sign", "frequency")),
    ("magnitude_prune", ()),
]


@pytest.fixture
def other(world: World) -> Path:
    """Another adapter on the Hub, demo/other: of another rank, by rsLoRA, on other modules and the embedding."""
    folder = world.adapter.with_name("other")
    targets = ["q_proj", "o_proj", "up_proj", "embed_tokens"]
    save_adapter(world.base, "llama", folder, seed=7, r=6, use_rslora=True, target_modules=targets)
    save_card(folder, license="apache-2.0", base_model="demo/base", library_name="peft")
    name_base(folder, "demo/base")
    world.api.create_repo("demo/other")
    world.api.upload_folder(repo_id="demo/other", folder_path=folder)
    return folder


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """s·B·A by the base's key, in float64, by nobody's code but this."""
    config, tensors = (
        json.loads((folder / "adapter_config.json").read_bytes()),
        load_file(folder / "adapter_model.safetensors"),
    )
    scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    found = {}
    for key, a in tensors.items():
        name = key.removeprefix("base_model.model.")
        if ".lora_A." in name:
            found[name.replace(".lora_A", "")] = scaling * tensors[key.replace("_A.", "_B.")].double() @ a.double()
        elif name.endswith(".lora_embedding_A"):
            b = tensors[key.replace("_A", "_B")].double()
            found[name.replace(".lora_embedding_A", ".weight")] = scaling * (b @ a.double()).T
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "verification.json").read_bytes())
    return found


def test_a_combination_answers_like_pefts_unmerged_model_with_it(
    world: World, tmp_path: Path, adapter_merge: Command
) -> None:
    targets = ["q_proj", "o_proj", "up_proj"]
    other = save_adapter(world.base, "llama", tmp_path / "other", seed=7, r=6, use_rslora=True, target_modules=targets)
    merged = tmp_path / "merged"
    given = ("merge", world.adapter, other, "--base", world.base, "--weights", "0.7,-0.3", "-o", merged)
    ran = adapter_merge(*given, "--verify", "full")
    assert ran.code == 0, ran.err
    said = {check["id"]: check["status"] for check in report(merged)["checks"]}
    assert said["combined"] == said["touched"] == said["behaviour"] == "pass"


def test_the_weighted_sum_of_unlike_adapters_is_merged_with_one_rounding(
    world: World, other: Path, tmp_path: Path, adapter_merge: Command
) -> None:
    merged = tmp_path / "merged"
    given = ("demo/adapter", "demo/other", "--weights", "0.7,-0.3", "-o", merged, "--verify", "weights")
    assert adapter_merge("merge", *given).code == 0
    base, one, two = weights(world.base), deltas(world.adapter), deltas(other)
    assert one.keys() - two.keys()
    assert two.keys() - one.keys()
    for key, value in weights(merged).items():
        exact = base[key].double() + 0.7 * one.get(key, torch.zeros(())) - 0.3 * two.get(key, torch.zeros(()))
        # torch rounds twice, by way of float32, which is right but for ties there.
        assert int((value != exact.bfloat16()).sum()) <= 1, key


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_kind_is_merged_proven_and_proven_again(
    world: World, other: Path, tmp_path: Path, adapter_merge: Command, kind: str, options: tuple[str, ...]
) -> None:
    merged = tmp_path / "merged"
    given = ("demo/adapter", "demo/other", "--combine", kind, "--weights", "1,-0.5", *options)
    assert adapter_merge("merge", *given, "-o", merged, "--verify", "weights").code == 0
    inputs = report(merged)["inputs"]
    assert [pin["repo"] for pin in inputs["adapters"]] == ["demo/adapter", "demo/other"]
    assert inputs["combination"]["kind"] == kind
    assert inputs["combination"]["weights"] == ["1.0", "-0.5"]
    assert inputs["combination"].get("seed") == (3 if "dare" in kind else None)
    ran = adapter_merge("verify", merged, "--verify", "weights")
    assert ran.code == 0, ran.out
    again = tmp_path / "again"
    assert adapter_merge("merge", *given, "-o", again, "--verify", "files").code == 0
    assert report(again)["subject"] == report(merged)["subject"]


def test_what_was_combined_answers_as_pefts_own_combination(
    world: World, other: Path, tmp_path: Path, adapter_merge: Command
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged = tmp_path / "merged"
    options = ("--weights", "0.7,-0.3", "--dtype", "float32", "--verify", "weights")
    assert adapter_merge("merge", world.adapter, other, "--base", world.base, *options, "-o", merged).code == 0
    ours = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float64).eval()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float64), world.adapter,
                                      adapter_name="one", autocast_adapter_dtype=False)  # fmt: skip
    model.load_adapter(other, "two", autocast_adapter_dtype=False)
    model.add_weighted_adapter(["one", "two"], [0.7, -0.3], "both", combination_type="cat")
    # It copies the first adapter's use_rslora, not the second's, so that its own scaling is right here.
    model = model.double().eval()
    tokens, wanted = torch.arange(3, 40)[None], {}
    with torch.no_grad():
        for name in ("one", "both"):
            model.set_adapter(name)
            wanted[name] = model(tokens).logits
        found = ours(tokens).logits
    assert not torch.allclose(wanted["one"], wanted["both"], atol=1e-3)
    torch.testing.assert_close(found, wanted["both"], rtol=0, atol=1e-5)


def test_one_adapter_can_be_weighted(world: World, tmp_path: Path, adapter_merge: Command) -> None:
    merged = tmp_path / "merged"
    given = (world.adapter, "--base", world.base, "--weights", "-0.5", "-o", merged, "--verify", "weights")
    assert adapter_merge("merge", *given).code == 0
    base, delta = weights(world.base), deltas(world.adapter)
    key = "model.layers.0.self_attn.q_proj.weight"
    exact = base[key].double() - 0.5 * delta[key]
    assert int((weights(merged)[key] != exact.bfloat16()).sum()) <= 1


def test_adapters_that_bring_the_bases_embedding_along_are_summed_on_it(
    world: World, other: Path, tmp_path: Path, adapter_merge: Command
) -> None:
    targets = ["embed_tokens", "lm_head"]
    head = save_adapter(world.base, "llama", tmp_path / "head", seed=9, target_modules=targets)
    assert all(any("embed_tokens.base_layer" in key for key in weights(folder)) for folder in (other, head))
    merged = tmp_path / "merged"
    given = ("merge", other, head, "--base", world.base, "-o", merged, "--verify", "weights")
    ran = adapter_merge(*given)
    assert ran.code == 0, ran.err
    key = "model.embed_tokens.weight"
    exact = weights(world.base)[key].double() + deltas(other)[key] + deltas(head)[key]
    assert int((weights(merged)[key] != exact.bfloat16()).sum()) <= 1


def test_an_adapter_that_is_a_pickle_is_combined_like_any_other(
    world: World, other: Path, tmp_path: Path, adapter_merge: Command
) -> None:
    safe, pickled = tmp_path / "safe", tmp_path / "pickled"
    given = ("merge", other, world.adapter, "--base", world.base, "--verify", "files", "--allow-pickle")
    assert adapter_merge(*given, "-o", safe).code == 0
    tensors = load_file(world.adapter / "adapter_model.safetensors")
    (world.adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, world.adapter / "adapter_model.bin")
    assert adapter_merge(*given, "-o", pickled).code == 0
    for key, value in weights(safe).items():
        assert torch.equal(value, weights(pickled)[key])


def test_adapters_that_name_the_modules_differently_are_refused_and_not_merged_twice(
    world: World, tmp_path: Path, adapter_merge: Command
) -> None:
    """One was trained on the model with its head, the other on the model inside it."""
    inner = save_adapter(world.base, "llama", tmp_path / "inner", seed=3)
    tensors = load_file(inner / "adapter_model.safetensors")
    renamed = {key.replace("model.model.model.", "model.model."): value for key, value in tensors.items()}
    save_file(renamed, inner / "adapter_model.safetensors", {"format": "pt"})
    ran = adapter_merge("merge", world.adapter, inner, "--base", world.base, "-o", tmp_path / "merged")
    assert_said(ran, 3, "adapter modules")
    assert_nothing_left(tmp_path)


# --- on the Hub ---------------------------------------------------------------------------------------------------


def test_several_adapters_are_published_once_with_all_their_names(
    world: World, other: Path, adapter_merge: Command
) -> None:
    given = ("run", "demo/adapter@v1", "demo/other", "--to", "demo/both", "--verify", "weights")
    ran = adapter_merge(*given)
    assert ran.code == 0, ran.err
    card = Path(world.api.hf_hub_download("demo/both", "README.md")).read_text()
    assert "[demo/adapter]" in card
    assert "[demo/other]" in card
    assert "--combine cat --weights 1.0,1.0" in card
    assert "license: apache-2.0\n" in card
    assert "that of demo/other is apache-2.0" in card
    message = world.api.list_repo_commits("demo/both")[0].message
    assert message.count("Adapter-Merge-Adapter: demo/") == 2
    assert not world.api.list_repo_refs("demo/both").tags  # v1 is the one adapter's version, not theirs together
    assert "✓ unchanged" in adapter_merge(*given).out
    assert adapter_merge("verify", "demo/both", "--verify", "weights").code == 0
    assert "pushed to" not in adapter_merge(*given, "--weights", "1,0.5", "--publish", "pr").out


def test_a_combination_that_another_report_names_fails_its_pins(
    world: World, other: Path, tmp_path: Path, adapter_merge: Command
) -> None:
    merged = tmp_path / "merged"
    assert adapter_merge("merge", "demo/adapter", "demo/other", "-o", merged, "--verify", "files").code == 0
    ran = adapter_merge("verify", merged, "--adapter", "demo/other", "--adapter", "demo/adapter", "--verify", "weights")
    assert ran.code == 4
    path = merged / "verification.json"
    path.write_text(path.read_text().replace('"kind": "cat"', '"kind": "average"'))
    assert_said(adapter_merge("verify", merged), 3, "a combination of adapters that this version does not know")


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--weights", "1"), "The adapters are 2, and their weights 1."),
        (("--weights", "1,x"), "are not numbers"),
        (("--weights", "1,nan"), "not a finite number"),
        (("--combine", "ties", "--density", "0"), "A density of 0"),
        (("--combine", "ties", "--density", "1.5"), "A density of 1.5"),
        (("--combine", "svd", "--rank", "0"), "A rank of 0"),
        (("--combine", "dare_ties", "--seed", "-1"), "-1 is not a seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_meant_ends_with_2_before_the_hub_is_asked(
    world: World, tmp_path: Path, adapter_merge: Command, options: tuple[str, ...], words: str
) -> None:
    before = world.answers()
    ran = adapter_merge("merge", "demo/adapter", "demo/never-seen", *options, "-o", tmp_path / "merged")
    assert_said(ran, 2, words)
    assert world.answers() == before
    assert_nothing_left(tmp_path)


def test_a_target_must_be_named_for_several(world: World, other: Path, adapter_merge: Command) -> None:
    assert_said(adapter_merge("run", "demo/adapter", "demo/other"), 2, "Several adapters in one model give it no name.")


def test_an_adapter_that_has_no_sum_is_refused_by_name(world: World, tmp_path: Path, adapter_merge: Command) -> None:
    dora = save_adapter(world.base, "llama", tmp_path / "dora", seed=3, use_dora=True)
    ran = adapter_merge("merge", world.adapter, dora, "--base", world.base, "-o", tmp_path / "merged")
    assert_said(ran, 3, "DoRA")
    assert "Adapter 2" in ran.err
    assert_nothing_left(tmp_path)


def test_a_setting_without_use_is_left_out_with_a_word(world: World, other: Path, adapter_merge: Command) -> None:
    ran = adapter_merge("plan", "demo/adapter", "demo/other", "--seed", "4", "--json")
    found = json.loads(ran.out)
    assert "seed" not in found["combination"]
    assert "--seed has no use for cat, and is left out." in found["notes"]


def test_several_adapters_are_planned_without_a_heavy_import(world: World, other: Path) -> None:
    assert heavy_imports(["plan", str(world.adapter), str(other), "--base", str(world.base)]) == "HEAVY []"


# --- each of several ----------------------------------------------------------------------------------------------


def test_each_adapter_gets_a_model_of_its_own_and_the_base_is_fetched_once(
    world: World, other: Path, adapter_merge: Command
) -> None:
    before = world.answers()
    ran = adapter_merge("run", "demo/adapter", "demo/other", "--each", "--verify", "weights")
    assert ran.code == 0, ran.err
    for repo in ("demo/adapter-merged", "demo/other-merged"):
        document = json.loads(Path(world.api.hf_hub_download(repo, "verification.json")).read_bytes())
        assert document["verdict"] == "verified"
        assert "adapters" not in document["inputs"]
    asked = [path for method, path, _ in world.hub.requests[before:] if method == "GET" and "demo/base" in path]
    files = [path for path in asked if "resolve" in path]
    assert len([path for path in files if path.endswith(".safetensors")]) == 4
    assert len(files) == len(set(files))
    assert "✓ unchanged" in adapter_merge("run", "demo/adapter", "demo/other", "--each", "--verify", "weights").out


def test_one_that_is_refused_does_not_stop_the_others_and_is_told_in_the_exit_code(
    world: World, tmp_path: Path, adapter_merge: Command
) -> None:
    broken = save_adapter(world.base, "llama", tmp_path / "broken", seed=3, target_modules=["q_proj"])
    path = broken / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "r": 5}))
    given = (
        broken,
        tmp_path / "missing",
        world.adapter,
        "--base",
        world.base,
        "--publish",
        "none",
        "--verify",
        "files",
    )
    ran = adapter_merge("run", *given, "--each", "-o", tmp_path / "merged", "--json")
    assert ran.code == 5
    found = json.loads(ran.out)
    assert [one.get("status") or one["error"]["exit_code"] for one in found] == ["refused", 5, "merged"]
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["adapter"]


@pytest.mark.parametrize("option", [("--to", "demo/x"), ("--weights", "1,1")], ids=" ".join)
def test_each_leaves_no_room_for_one_target_or_a_combination(
    world: World, adapter_merge: Command, option: tuple[str, str]
) -> None:
    assert_said(adapter_merge("run", "demo/adapter", "demo/adapter", "--each", *option), 2, "With --each")


def test_two_adapters_of_one_name_do_not_share_a_folder(world: World, tmp_path: Path, adapter_merge: Command) -> None:
    given = ("run", "demo/adapter", "demo/adapter@v1", "--each", "--publish", "none", "-o", tmp_path / "merged")
    assert_said(adapter_merge(*given), 2, "Two of the adapters are called adapter.")
