"""A tokenizer is one of the two, whole: no file of the other stands in its way, and what generates stops at its end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bot.checks.folder.special_tokens import PADDED, special_tokens_of
from bot.events import silent
from bot.records import Plan, Report
from bot.report_document import InputPins, MergeFacts
from bot.special_tokens import COUNTS_FROM_PADDING
from bot.verify import Subject, table, verify
from tests.faults.conftest import INPUTS, named, statuses
from tests.pull.given import write_adapter, write_base
from tests.steps import merge_folders, plan_folders

WORDS = ("<eos>", "<pad>", "<end>", "<fill>", "<new>")
GENERATION = "generation_config.json"


def whole(*words: str) -> dict[str, Any]:
    """A tokenizer.json whose added tokens are these, numbered from 100 on."""
    added = [{"id": 100 + at, "content": word, "special": True} for at, word in enumerate(words)]
    return {"version": "1.0", "added_tokens": added, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}


def write(folder: Path, **files: Any) -> None:
    """JSON files, by their names without the ending."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


class World:
    """A base with the files of transformers 4, and an adapter with a tokenizer of transformers 5."""

    def __init__(self, folder: Path) -> None:
        self.base, self.adapter, self.merged = (
            write_base(folder / "base"),
            write_adapter(folder / "adapter"),
            folder / "merged",
        )
        old = {"eos_token": "<eos>", "pad_token": "<pad>"}
        write(
            self.base, tokenizer=whole(*WORDS[:4]), tokenizer_config=old, special_tokens_map=old, added_tokens={"<eos>": 100},
            vocab={"a": 0}, generation_config={"eos_token_id": 100, "pad_token_id": 101, "temperature": 0.7},
        )  # fmt: skip
        (self.base / "tekken.json").write_text("{}")
        config = json.loads((self.base / "config.json").read_text())
        write(self.base, config={**config, "eos_token_id": 100, "pad_token_id": 7})
        new = {"eos_token": {"content": "<end>"}, "pad_token": "<new>"}
        write(self.adapter, tokenizer=whole(*WORDS), tokenizer_config=new)

    def plan(self) -> Plan:
        return plan_folders(self.base, self.adapter)

    def merge(self) -> Path:
        return merge_folders(self.base, self.adapter, self.merged)

    def prove(self, **changes: Any) -> Report:
        given = {
            "folder": self.merged, "base": self.base, "adapter": self.adapter, "inputs": InputPins.of(INPUTS), "recorded": None,
            "merge": MergeFacts.of({}),
            "dtype": "auto", "ours": True, "level": "files", "not_run": (), "trust_remote_code": False,
        }  # fmt: skip
        return verify(Subject(**(given | changes)), silent)

    def said(self, name: str) -> Any:
        return json.loads((self.merged / name).read_text())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_older_files_of_the_base_do_not_stay_beside_the_adapters(world: World):
    names = {path.name for path in world.merge().iterdir()}
    assert names == {"config.json", "model.safetensors", GENERATION, "tokenizer.json", "tokenizer_config.json"}
    assert any("special_tokens_map.json" in note and "left out" in note for note in world.plan().notes)
    report = world.prove()
    assert report.verdict == "verified", table(report)
    assert not statuses(report, "warn", "skip"), table(report)


def test_what_generates_follows_the_tokenizer_and_the_plan_declares_it(world: World):
    changes = {change.path: (change.before, change.after) for change in world.plan().config_changes}
    assert changes == {
        f"{GENERATION}: eos_token_id": (100, 102), f"{GENERATION}: pad_token_id": (101, 104), "eos_token_id": (100, 102),
    }  # fmt: skip
    world.merge()
    assert world.said(GENERATION) == {"eos_token_id": 102, "pad_token_id": 104, "temperature": 0.7}
    assert (world.said("config.json")["eos_token_id"], world.said("config.json")["pad_token_id"]) == (102, 7)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (100, 102),
        ([100, 55], [102, 55]),
        ([55], [102, 55]),
        (55, [102, 55]),
        (None, 102),
        (102, 102),
        ([7, 102], [7, 102]),
    ],
)
def test_the_new_end_takes_the_place_of_the_old_one_and_others_stay(world: World, before: Any, after: Any):
    write(world.base, generation_config={"eos_token_id": before, "pad_token_id": 104})
    world.merge()
    assert world.said(GENERATION) == {"eos_token_id": after, "pad_token_id": 104}
    assert world.prove().verdict == "verified"


def test_without_a_generation_config_the_models_config_ends_the_text(world: World):
    (world.base / GENERATION).unlink()
    write(world.base, config={**json.loads((world.base / "config.json").read_text()), "eos_token_id": 55})
    world.merge()
    assert world.said("config.json")["eos_token_id"] == [102, 55]
    assert world.prove().verdict == "verified"


def test_an_adapters_own_generation_config_is_taken_as_it_is(world: World):
    write(world.adapter, generation_config={"eos_token_id": 3})
    world.merge()
    assert world.said(GENERATION) == {"eos_token_id": 3}
    assert world.prove().verdict == "verified"


def test_a_model_that_counts_positions_from_its_padding_keeps_it(world: World):
    config = json.loads((world.base / "config.json").read_text())
    write(world.base, config={**config, "model_type": "roberta", "pad_token_id": 101})
    world.merge()
    assert world.said("config.json")["pad_token_id"] == 101
    assert world.said(GENERATION)["pad_token_id"] == 104
    assert world.prove().verdict == "verified"


def test_the_same_tokenizer_changes_nothing(world: World):
    """Copied with the adapter: other spellings of the same vocabulary may stay, and the configs are the base's."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        shutil.copy(world.base / name, world.adapter / name)
    plan = world.plan()
    assert not plan.config_changes
    assert {"vocab.json", "tekken.json", "special_tokens_map.json"} <= {asset.name for asset in plan.assets}
    world.merge()
    assert world.prove().verdict == "verified"


def test_settings_alone_keep_the_bases_vocabulary_and_win_over_its_older_map(world: World):
    (world.adapter / "tokenizer.json").unlink()
    write(world.adapter, tokenizer_config={"eos_token": "<end>", "pad_token": "<pad>"})
    world.merge()
    assert (world.merged / "tokenizer.json").read_bytes() == (world.base / "tokenizer.json").read_bytes()
    assert not (world.merged / "special_tokens_map.json").exists()
    assert special_tokens_of(world.merged).texts["eos_token"] == "<end>"
    report = world.prove()
    assert report.verdict == "verified", table(report)


def test_a_slow_tokenizer_is_not_hidden_behind_the_bases_fast_one(world: World):
    (world.adapter / "tokenizer.json").unlink()
    (world.adapter / "tokenizer.model").write_bytes(b"pieces")
    world.merge()
    assert not (world.merged / "tokenizer.json").exists()
    assert world.prove().verdict == "verified"


def test_a_token_without_a_known_number_is_said(world: World):
    write(world.adapter, tokenizer=whole(*WORDS[:2]))
    assert any("<end>" in note and "keeps the base's" in note for note in world.plan().notes)
    world.merge()
    assert world.said(GENERATION)["eos_token_id"] == 100
    assert world.prove().verdict == "verified"


@pytest.mark.parametrize(
    "odd",
    [
        {"added_tokens_decoder": {"9" * 5000: {"content": "<end>"}, "x": 3}}, {"added_tokens_decoder": []},
        {"eos_token": ["<end>"]}, {"eos_token": {"content": 3}}, {"eos_token": "\n::set-output"},
    ],
)  # fmt: skip
def test_odd_tokenizers_are_read_as_far_as_they_say_something(world: World, odd: dict[str, Any]):
    write(
        world.adapter,
        tokenizer={"added_tokens": [3, {"id": "x"}, {"content": "<end>", "id": [1]}]},
        tokenizer_config=odd,
    )
    write(world.base, generation_config={"eos_token_id": {"a": 1}, "pad_token_id": 104})
    world.merge()
    assert not any("\n" in note for note in world.plan().notes)
    assert world.prove().verdict == "verified"


# --- what the verifier finds in a folder that mixes them --------------------------------------------------------------------


def test_the_bases_older_map_beside_the_adapters_tokenizer_is_named(world: World):
    shutil.copy(world.base / "special_tokens_map.json", world.merge())
    for ours in (True, False):
        found = named(world.prove(ours=ours), "special-tokens")
        assert (found.status, "eos_token is '<eos>'" in found.why) == ("fail", True)


def test_the_bases_other_vocabulary_beside_the_adapters_is_named(world: World):
    shutil.copy(world.base / "tekken.json", world.merge())
    found = named(world.prove(), "special-tokens")
    assert (found.status, "tekken.json" in found.why) == ("fail", True)


def test_an_end_that_does_not_follow_is_named(world: World):
    shutil.copy(world.base / GENERATION, world.merge())
    report = world.prove()
    assert "eos_token_id is 100, and must be 102" in named(report, "generation-config").why
    config = world.said("config.json")
    write(world.merged, config={**config, "eos_token_id": 100})
    assert "eos_token_id is 100, and must be 102" in named(world.prove(), "config").why


def test_another_change_beside_the_declared_ones_is_named(world: World):
    world.merge()
    write(world.merged, generation_config={**world.said(GENERATION), "temperature": 0.1})
    assert "temperature" in named(world.prove(), "generation-config").why


def test_a_foreign_merge_that_lost_the_adapters_end_is_not_verified(world: World):
    """Somebody else's merge with the base's tokenizer: its end is the base's."""
    world.merge()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(world.base / name, world.merged / name)
    assert named(world.prove(ours=False), "special-tokens").status == "fail"


def test_a_foreign_merge_may_keep_the_ends_of_the_base_in_its_configs(world: World):
    """Everybody saves the adapter's tokenizer and the base's configs: remarks, unless it is neither's end."""
    shutil.copy(world.base / "config.json", world.merge())
    shutil.copy(world.base / GENERATION, world.merged)
    write(world.merged, generation_config={**world.said(GENERATION), "transformers_version": "5"})
    report = world.prove(ours=False)
    assert statuses(report, "warn", "fail") == {"config": "warn", "generation-config": "warn"}, table(report)
    assert "eos_token_id is 100, and must be 102" in named(report, "generation-config").why
    assert "transformers_version" not in " ".join(named(report, "generation-config").worst)
    write(world.merged, generation_config={**world.said(GENERATION), "eos_token_id": 101})
    write(world.merged, config={**world.said("config.json"), "eos_token_id": 101})
    assert statuses(world.prove(ours=False), "fail") == {"config": "fail", "generation-config": "fail"}


def test_the_models_that_count_from_their_padding_are_those_of_transformers():
    """By transformers' own sources: where a model's positions are made of `padding_idx`, its padding token stays."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name

    counting = ("create_position_ids_from_input_ids", "padding_idx + 1", "self.padding_idx).long", "+ padding_idx")
    models = Path(transformers.__file__).parent / "models"
    found = {
        kind for kind in CONFIG_MAPPING_NAMES for path in (models / model_type_to_module_name(kind)).glob("modeling_*.py")
        if any(word in path.read_text() for word in counting)
    }  # fmt: skip
    textless = {"pp_doclayout_v2", "speecht5_hifigan", "EvollaModel"}  # or the same again
    texts = {kind for kind in found - textless if not any(word in kind for word in ("vision", "audio"))}
    assert texts == COUNTS_FROM_PADDING == PADDED
