"""Whatever a tokenizer, a processor or a model reads from its folder by name is in the merged folder, and proven there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bot.assets import KINDS
from bot.checks.folder.assets import FAMILIES, _matches
from bot.events import silent
from bot.records import Report
from bot.report_document import InputPins, MergeFacts
from bot.verify import Subject, table, verify
from tests.faults.conftest import INPUTS, named, statuses
from tests.pull.given import write_adapter, write_base
from tests.steps import merge_folders, plan_folders

DENSE = [{"path": "", "type": "sentence_transformers.models.Transformer"},
         {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
         {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    return write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")


def prove(base: Path, adapter: Path, merged: Path, **changes: Any) -> Report:
    given = {
        "folder": merged, "base": base, "adapter": adapter, "inputs": InputPins.of(INPUTS),
        "recorded": None, "merge": MergeFacts.of({}),
        "dtype": "auto",
        "ours": True, "level": "files", "not_run": (), "trust_remote_code": False,
    }  # fmt: skip
    return verify(Subject(**(given | changes)), silent)


NAMES = (
    "spk_dict.pt", "speaker_embeddings_path.json", "speaker_embeddings/v2/en_speaker_0_semantic_prompt.npy", "byte_maps.json",
    "word_shape.json", "word_pronunciation.json", "audio_tokenizer_config.json", "decision.json", "decision_template.jinja",
    "judge_config.json", "calibration.json", "head.safetensors", "tokenizer.4.0.0.json", "tiktoken.model",
    "question_encoder_tokenizer/vocab.txt", "router_config.json",
)  # fmt: skip


def test_they_are_copied_and_proven(inputs: tuple[Path, Path], tmp_path: Path):
    base, adapter = inputs
    for name in NAMES:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(f"the base's {name}".encode())
    merged = merge_folders(base, adapter, tmp_path / "merged")
    assert {name: (merged / name).read_bytes() for name in NAMES} == {
        name: (base / name).read_bytes() for name in NAMES
    }
    report = prove(base, adapter, merged)
    assert not statuses(report, "warn", "fail", "skip"), table(report)
    for name in NAMES:
        (merged / name).unlink()
    lost = " ".join(
        " ".join(one.worst) + one.why for one in prove(base, adapter, merged).findings if one.status == "fail"
    )
    assert not [name for name in NAMES if f"{name} is lost" not in lost]


def test_voices_that_are_not_the_bases_are_a_pickle_like_any_other(inputs: tuple[Path, Path], tmp_path: Path):
    base, adapter = inputs
    (base / "spk_dict.pt").write_bytes(b"voices")
    merged = merge_folders(base, adapter, tmp_path / "merged")
    (merged / "spk_dict.pt").write_bytes(b"others")
    (merged / "voices.pt").write_bytes(b"voices")
    found = named(prove(base, adapter, merged), "pickles")
    assert found.status == "fail"
    assert "spk_dict.pt is a pickle" in found.why + " ".join(found.worst)
    assert "voices.pt is a pickle" in found.why + " ".join(found.worst)


def test_an_adapters_voices_are_never_copied(inputs: tuple[Path, Path]):
    base, adapter = inputs
    (adapter / "config_of_voices.json").write_text("{}")
    (adapter / "speaker_embeddings_path.json").write_text("{}")
    assert "speaker_embeddings_path.json" not in {asset.name for asset in plan_folders(base, adapter).assets}


# --- sentence-transformers --------------------------------------------------------------------------------------------------


def sentence(folder: Path, value: float, weights: str = "model.safetensors") -> None:
    """Pooling and Dense beside the transformer."""
    (folder / "modules.json").write_text(json.dumps(DENSE))
    for module in ("1_Pooling", "2_Dense"):
        (folder / module).mkdir()
        (folder / module / "config.json").write_text(json.dumps({"in_features": 8}))
    save_file({"linear.weight": np.full((4, 8), value, "f4")}, folder / "2_Dense" / weights)


def test_a_base_with_a_dense_module_keeps_it(inputs: tuple[Path, Path], tmp_path: Path):
    base, adapter = inputs
    sentence(base, 1.0)
    merged = merge_folders(base, adapter, tmp_path / "merged")
    assert (merged / "2_Dense/model.safetensors").read_bytes() == (base / "2_Dense/model.safetensors").read_bytes()
    report = prove(base, adapter, merged)
    assert not statuses(report, "warn", "fail", "skip"), table(report)
    (merged / "2_Dense/model.safetensors").unlink()
    assert named(prove(base, adapter, merged), "modules").status == "fail"


def test_a_dense_module_that_was_trained_with_the_adapter_takes_its_place(inputs: tuple[Path, Path], tmp_path: Path):
    base, adapter = inputs
    sentence(base, 1.0)
    sentence(adapter, 2.0)
    merged = merge_folders(base, adapter, tmp_path / "merged")
    assert (merged / "2_Dense/model.safetensors").read_bytes() == (adapter / "2_Dense/model.safetensors").read_bytes()
    report = prove(base, adapter, merged)
    assert not statuses(report, "warn", "fail", "skip"), table(report)
    shutil.copy(base / "2_Dense/model.safetensors", merged / "2_Dense/model.safetensors")
    assert named(prove(base, adapter, merged), "modules").status == "fail"


def test_a_dense_module_that_is_a_pickle_is_refused(inputs: tuple[Path, Path]):
    base, adapter = inputs
    sentence(base, 1.0, "pytorch_model.bin")
    (refusal,) = plan_folders(base, adapter).refusals
    assert (refusal.code, "2_Dense/pytorch_model.bin" in refusal.reason) == ("module-weights", True)
    shutil.copy(base / "2_Dense/pytorch_model.bin", base / "2_Dense/model.safetensors")
    assert not plan_folders(base, adapter).refusals


# --- all that the installed transformers reads by name ----------------------------------------------------------------------

NAMED = re.compile(
    r"""["']([\w-]+(?:\.[\w-]+)*\.(?:json|npz|npy|pt|pth|bin|txt|model|pkl|tsv|csv|spm|tiktoken|bpe|vocab|pickle|codes|tokenizer|"""
    r"""jinja|safetensors))["']"""
)
NOT_READ = {  # by a model that is loaded from its folder, or not carried on purpose
    "adapter_config.json", "adapter_model.bin", "adapter_model.safetensors",  # an adapter's
    "config.json", "model.safetensors", "model.safetensors.index.json",  # the merge's own
    "pytorch_model.bin", "pytorch_model.bin.index.json",  # pickles
    "modelcard.json", "version.json", "version.txt", "requirements.txt", "export.json", "report.json",
    "_FULL_TENSORS.json", "_SUMMARY.json", "network_debug_report.json", "dataset.pt", "training_args.bin", "captured_info.txt",
    "my_configuration.json", "train-batch.pt",  # examples in docstrings
    "language_model.model", "talker.model", "talker.code_predictor.model", "ggml.model",  # names of modules and of fields
    "psgs_w100.tsv.pkl", "stereo_chemical_props.txt",  # an index of Wikipedia; a file of the library's
}  # fmt: skip
ELSEWHERE = ("testing", "cli/", "commands/", "trainer", "training_args", "integrations/deepspeed", "modeling_tf")


def test_every_name_in_transformers_is_carried_by_the_merger_and_known_to_the_verifier():
    import transformers

    root, found = Path(transformers.__file__).parent, set()
    for path in root.rglob("*.py"):
        if path.relative_to(root).as_posix().startswith(ELSEWHERE):
            continue
        found.update(NAMED.findall(path.read_text()))
    assert {"spk_dict.pt", "tokenizer.json", "byte_maps.json"} <= found
    names = sorted(found - NOT_READ)
    assert [name for name in names if not any(kind.fullmatch(name) for _, kind, _ in KINDS)] == []
    known = [pattern for family in FAMILIES for pattern in family.patterns] + ["chat_template.j*"]
    assert [name for name in names if not any(_matches(name, pattern) for pattern in known)] == []


def test_an_omni_model_is_loaded_as_its_users_load_it(tmp_path: Path):
    """Its own from_pretrained reads its voices, and takes no question about what was loaded."""
    import torch
    import transformers

    from bot.checks.behaviour.load_models import load_folder
    from tests.faults.held import job_of

    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
             "vocab_size": 128, "max_position_embeddings": 64,
             "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}  # fmt: skip
    vision = {"depth": 1, "num_heads": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 32,
              "fullatt_block_indexes": [0], "window_size": 32, "patch_size": 8}  # fmt: skip
    audio = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32, "num_mel_bins": 16,
             "n_window": 4, "max_source_positions": 32, "output_dim": 32}  # fmt: skip
    config = transformers.Qwen2_5OmniConfig(
        thinker_config={"text_config": small, "vision_config": vision, "audio_config": audio},
        talker_config={**small, "embedding_size": 32, "head_dim": 16},
        enable_audio_output=False,
    )
    transformers.Qwen2_5OmniForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(OSError, match="spk_dict"):
        load_folder(tmp_path, job_of(tmp_path, tmp_path, tmp_path))
    torch.save({"Chelsie": {"cond": torch.zeros(1, 16)}}, tmp_path / "spk_dict.pt")
    model, loading = load_folder(tmp_path, job_of(tmp_path, tmp_path, tmp_path))
    assert type(model).__name__ == "Qwen2_5OmniForConditionalGeneration"
    assert not loading["missing_keys"]
