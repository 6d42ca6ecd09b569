"""Trained weights beside the adapter's never vanish without a word; what trainers keep to go on is passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bot.errors import Refused
from bot.events import silent
from bot.machine import look
from bot.plan import make_plan
from bot.pull import parse_ref, pin
from bot.records import Options, Request
from tests.pull.given import two_sentences, write_adapter, write_base


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    return write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")


def pinned(hub, inputs: tuple[Path, Path]):
    base, adapter = inputs
    return pin(Request(adapter=parse_ref(str(adapter)), base=parse_ref(str(base))), hub, silent)


def put(adapter: Path, *names: str) -> None:
    for name in names:
        (adapter / name).parent.mkdir(parents=True, exist_ok=True)
        (adapter / name).write_bytes(b"weights")


@pytest.mark.parametrize(
    "name",
    [
        "vit.safetensors", "non_lora_state_dict.bin", "non_lora_trainables.bin", "value_head.safetensors", "v_head.bin",
        "mm_projector.bin", "model.safetensors", "pytorch_model.bin", "head.pt", "epoch.ckpt", "model_head.pkl",
        "vit/model.safetensors", "2_Dense/model.safetensors", "custom_checkpoint_0.bin", "merged/model.safetensors",
    ],
)  # fmt: skip
def test_other_weights_are_refused_by_name(hub, inputs, name):
    put(inputs[1], name)
    with pytest.raises(Refused) as caught:
        pinned(hub, inputs)
    two_sentences(caught.value, what=name, do="folder of their own")


def test_the_first_few_are_named_and_the_others_counted(hub, inputs):
    put(inputs[1], *(f"part-{number}.safetensors" for number in range(9)))
    with pytest.raises(Refused, match=r"part-0.safetensors, .*part-2.safetensors and 6 more"):
        pinned(hub, inputs)


def test_what_a_trainer_keeps_to_go_on_is_passed_over(hub, inputs):
    put(
        inputs[1], "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_3.pth", "sampler.bin",
        "training_args.bin", "checkpoint-500/model.safetensors", "checkpoint-500/optimizer.pt", "last-checkpoint/x.bin",
        "global_step500/mp_rank_00_model_states.pt", "adapter_model.bin", "runs/events.out.tfevents.1",
        "pytorch_model/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "epoch_2/pytorch_model.bin", "step_50/model.safetensors",
        "checkpoint_7/model.safetensors", "checkpoint-best/pytorch_model.bin", "recipe_state/recipe_state.pt",
    )  # fmt: skip
    assert len(pinned(hub, inputs).adapter.headers) == 1


def test_the_adapter_in_another_form_and_what_was_merged_of_it_are_passed_over(hub, inputs):
    put(inputs[1], "ggml-adapter-model.bin", "adapter_model.pt", "adapter_0.pt")
    put(
        inputs[1],
        "merged/config.json",
        "merged/model-00001-of-00002.safetensors",
        "merged/model-00002-of-00002.safetensors",
    )
    assert len(pinned(hub, inputs).adapter.headers) == 1


def test_another_adapter_in_a_folder_of_its_own_is_passed_over(hub, inputs):
    put(inputs[1], "reference/adapter_config.json", "reference/adapter_model.safetensors")
    assert len(pinned(hub, inputs).adapter.headers) == 1


def test_rows_of_new_tokens_are_refused_where_no_merge_takes_them(hub, inputs):
    put(inputs[1], "new_embeddings.safetensors")
    (refusal,) = make_plan(pinned(hub, inputs), Options(), look(inputs[1])).refusals
    assert (refusal.code, "new_embeddings.safetensors" in refusal.reason) == ("rows-not-saved", True)


def test_modules_of_sentence_transformers_that_the_adapter_names_are_copied_instead(hub, inputs):
    put(inputs[1], "2_Dense/model.safetensors")
    (inputs[1] / "modules.json").write_text(
        json.dumps([{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}])
    )
    assert len(pinned(hub, inputs).adapter.headers) == 1
