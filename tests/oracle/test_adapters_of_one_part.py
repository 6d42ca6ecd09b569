"""An adapter that was trained on one part of a larger model, whose other parts have modules of the same names and sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from bot.adapters.combine.prediction import predict_combined
from bot.checks.behaviour.load_models import readable_adapter
from bot.events import silent
from bot.records import Combination, Sources
from bot.verify import verify
from tests.faults.conftest import claim
from tests.faults.held import job_of
from tests.oracle.one_architecture import adapted, answers, load, proven
from tests.steps import merge_folders, plan_folders, sources_of

TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}  # fmt: skip
VISION = {"depth": 1, "num_heads": 2, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64,
          "fullatt_block_indexes": [0], "window_size": 32, "patch_size": 8}  # fmt: skip
AUDIO = {"encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "d_model": 32, "num_mel_bins": 16,
         "n_window": 4, "max_source_positions": 32, "output_dim": 64}  # fmt: skip
SOUND = {
    "dit_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "emb_dim": 16, "head_dim": 16,
                   "enc_emb_dim": 16, "enc_dim": 16, "enc_channels": [16, 16, 16, 16, 48], "enc_attention_channels": 8,
                   "enc_res2net_scale": 2, "enc_se_channels": 8, "num_embeds": 33, "mel_dim": 16},
    "bigvgan_config": {"mel_dim": 16, "upsample_initial_channel": 64},
}  # fmt: skip
QKV = r".*layers\.\d\.self_attn\.(q|v)_proj"


def omni(folder: Path, talker_size: int = 64) -> Path:
    """Qwen2.5-Omni, small; thinker and talker have layers of the same sizes unless the talker's are given."""
    talker = TEXT | {"embedding_size": 64, "head_dim": 16, "hidden_size": talker_size}
    config = transformers.Qwen2_5OmniConfig(
        thinker_config={"text_config": TEXT, "vision_config": VISION, "audio_config": AUDIO},
        talker_config=talker,
        token2wav_config=SOUND,
    )
    torch.manual_seed(0)
    transformers.Qwen2_5OmniForConditionalGeneration(config).save_pretrained(folder)
    torch.save({}, folder / "spk_dict.pt")
    return folder


def whole(folder: Path) -> Any:
    chosen = transformers.Qwen2_5OmniForConditionalGeneration
    return chosen.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return omni(tmp_path_factory.mktemp("omni") / "base")


def edit(adapter: Path, **settings: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def changed(base: Any, merged: Any) -> set[str]:
    before, after = base.state_dict(), merged.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def differences(folder: Path, base: Path, adapter: Path) -> list[str]:
    """The keys that the verifier names, of a merge that claims to be ours."""
    report = verify(claim(base, adapter, folder), silent)
    return [str(row) for one in report.findings if one.status == "fail" for row in (*one.worst, one.why)]


@pytest.mark.parametrize(("part", "other"), [("thinker", "talker"), ("talker", "thinker")])
def test_the_part_that_the_adapter_was_trained_on_is_changed(base: Path, part: str, other: str, tmp_path: Path) -> None:
    model = whole(base)
    tuned = adapted(
        getattr(model, part), tmp_path / "adapter", target_modules=QKV, exclude_modules=r".*audio.*|.*visual.*"
    )
    merged = merge_folders(base, tmp_path / "adapter", tmp_path / "merged")
    names = changed(whole(base), whole(merged))
    assert len(names) == 4
    assert {name.partition(".")[0] for name in names} == {part}
    inner = getattr(whole(merged), part)
    theirs = dict(tuned.merge_and_unload().named_parameters())
    for name, weight in inner.named_parameters():
        assert torch.allclose(weight, theirs[name], atol=1e-6), name
    assert differences(merged, base, tmp_path / "adapter") == []
    # The same numbers added to the other part: the verifier, which reads the adapter by itself, names both.
    tensors, plain = load_file(merged / "model.safetensors"), load_file(base / "model.safetensors")
    for key in [key for key in plain if not torch.equal(tensors[key], plain[key])]:
        tensors[key.replace(part, other)] = plain[key.replace(part, other)] + tensors[key] - plain[key]
        tensors[key] = plain[key]
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
    seen = "\n".join(differences(merged, base, tmp_path / "adapter"))
    assert f"{part}.model.layers.0.self_attn" in seen
    assert f"{other}.model.layers.0.self_attn" in seen


def test_without_its_class_it_stays_refused_and_shapes_still_decide(base: Path, tmp_path: Path) -> None:
    """PEFT does not name the class where it is given a task. A class that no part is of says nothing either."""
    adapter = tmp_path / "adapter"
    adapted(whole(base).thinker, adapter, target_modules=r"model\.language_model.*(q|v)_proj")
    for mapping in (None, {"base_model_class": "NobodysModel"}, {"base_model_class": 7}, {}):
        edit(adapter, task_type="CAUSAL_LM", auto_mapping=mapping)
        assert [one.code for one in plan_folders(base, adapter).refusals] == ["ambiguous-names"], mapping
    narrow = omni(tmp_path / "narrow", talker_size=32)
    merged = merge_folders(narrow, adapter, tmp_path / "merged")
    assert {name.partition(".")[0] for name in changed(whole(narrow), whole(merged))} == {"thinker"}


def test_a_class_that_the_sizes_contradict_is_no_licence_to_guess(tmp_path: Path) -> None:
    """The names are in the part that the class says, and the sizes are another part's."""
    narrow, adapter = omni(tmp_path / "narrow", talker_size=32), tmp_path / "adapter"
    adapted(whole(narrow).talker, adapter, target_modules=QKV)
    assert not plan_folders(narrow, adapter).refusals
    edit(adapter, auto_mapping={"base_model_class": "Qwen2_5OmniThinkerForConditionalGeneration"})
    (refusal,) = plan_folders(narrow, adapter).refusals
    assert refusal.code == "shape"
    assert "thinker.model.layers.0.self_attn" in refusal.reason


def test_peft_gets_the_adapter_under_the_whole_models_names(base: Path, tmp_path: Path) -> None:
    model = whole(base)
    tuned = adapted(model.thinker, tmp_path / "adapter", target_modules=r"model\.language_model.*(q|v)_proj")
    inputs = [{"input_ids": torch.randint(3, 100, (2, 9))}]
    expected = answers(tuned, inputs)
    (tmp_path / "work").mkdir()
    model = whole(base)
    folder = readable_adapter(model, job_of(base, tmp_path / "adapter", tmp_path, work=tmp_path / "work"))
    unmerged = PeftModel.from_pretrained(model, folder).eval()
    again = answers(unmerged.base_model.model.thinker, inputs)
    assert expected is not None
    assert again is not None
    assert torch.equal(again, expected)
    assert not [name for name, _ in unmerged.named_modules() if "talker" in name and name.endswith("lora_A")]
    keys = load_file(folder / "adapter_model.safetensors")
    assert all(key.startswith("base_model.model.thinker.") for key in keys)
    assert len(keys) == 8


@pytest.mark.parametrize(("part", "prefix"), [("decoder", "decoder.bert."), ("encoder", None)])
def test_one_side_of_a_composite_of_two_berts(part: str, prefix: str | None, tmp_path: Path) -> None:
    """The decoder's class (BertLMHeadModel) is that of one part; the encoder's (BertModel) is also inside the decoder."""
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 64,
    }
    configs = [transformers.BertConfig(**small) for _ in range(2)]
    torch.manual_seed(0)
    chosen = transformers.EncoderDecoderModel
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        *configs, decoder_start_token_id=1, pad_token_id=0
    )
    chosen(config).save_pretrained(tmp_path / "base")
    inner = getattr(load(chosen, tmp_path / "base"), part)
    adapted(inner, tmp_path / "adapter", target_modules=r".*\.attention\.self\.(query|value)")
    if prefix is None:
        assert [one.code for one in plan_folders(tmp_path / "base", tmp_path / "adapter").refusals] == [
            "ambiguous-names"
        ]
        return
    merged = merge_folders(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    names = changed(load(chosen, tmp_path / "base"), load(chosen, merged))
    assert len(names) == 4
    assert all(name.startswith(prefix) for name in names)
    assert not proven(tmp_path)


def test_adapters_of_two_parts_are_not_combined(base: Path, tmp_path: Path) -> None:
    """Their modules have the same names, and would be added up into one part."""
    for part in ("thinker", "talker"):
        adapted(
            getattr(whole(base), part), tmp_path / part, target_modules=r"model\..*layers\.\d\.self_attn\.(q|v)_proj"
        )
    first, second = (sources_of(base, tmp_path / part) for part in ("thinker", "talker"))
    both = Sources(base=first.base, adapter=first.adapter, more=(second.adapter,))
    predicted = predict_combined(both, Combination(kind="cat", weights=(1.0, 1.0)))
    assert predicted is not None
    assert [one.code for one in predicted.refusals] == ["unlike-parts"]
    assert "talker, thinker" in predicted.refusals[0].reason
    alike = Sources(base=first.base, adapter=first.adapter, more=(first.adapter,))
    same = predict_combined(alike, Combination(kind="cat", weights=(1.0, 1.0)))
    assert same is not None
    assert not same.refusals
