"""transformers chooses a tokenizer's class by the config.json beside it: what the base does as well is no fault of a merge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from bot.checks.behaviour.job import WorkerJob
from bot.checks.behaviour.probe_inputs import load_tokenizer
from bot.checks.behaviour.tokenizer import compare_tokenizers
from tests.faults.held import job_of


def write(folder: Path, kind: str | None, splits: str = r"\p{N}{1,3}") -> Path:
    """DeepSeek's tokenizer on Qwen2: byte-level, of a class that Qwen2's config overrules. `kind`: a config's model_type."""
    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)} | {"11": 256}, [("1", "1")]))
    parts = [pre_tokenizers.Split(Regex(splits), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence(parts)
    made.add_special_tokens(["<eos>"])
    made.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "LlamaTokenizerFast", "eos_token": "<eos>", "pad_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    if kind is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder


@pytest.fixture
def job(tmp_path: Path) -> WorkerJob:
    (tmp_path / "work").mkdir()
    base, adapter = write(tmp_path / "base", "qwen2"), write(tmp_path / "adapter", None)
    return job_of(base, adapter, tmp_path / "merged", work=tmp_path / "work")


def test_a_class_that_the_bases_config_chooses_is_a_remark(job: WorkerJob):
    found = load_tokenizer(job.base, trust=False)
    faults, remarks = compare_tokenizers(found, job)
    assert faults == []
    assert "beside a config.json like the base's as a Qwen2Tokenizer" in remarks[0]
    assert "texts have other token numbers" in remarks[0]
    assert not list(job.work.iterdir())


def test_another_tokenizer_is_a_fault_beside_the_config_too(job: WorkerJob):
    merged = write(job.work / "merged", "qwen2")
    said = json.loads((merged / "tokenizer_config.json").read_text())
    (merged / "tokenizer_config.json").write_text(json.dumps({**said, "pad_token": "<other>"}))
    faults, remarks = compare_tokenizers(load_tokenizer(merged, trust=False), job)
    assert any("pad_token is '<other>'" in fault for fault in faults)
    assert remarks == []


def test_the_same_tokenizer_of_one_class_says_nothing(job: WorkerJob, tmp_path: Path):
    merged = write(tmp_path / "merged", "llama")
    assert compare_tokenizers(load_tokenizer(merged, trust=False), job) == ([], [])


def test_settings_without_a_vocabulary_are_those_of_the_bases(job: WorkerJob, tmp_path: Path):
    adapter = job.adapter
    (adapter / "tokenizer.json").unlink()
    said = json.loads((adapter / "tokenizer_config.json").read_text())
    (adapter / "tokenizer_config.json").write_text(json.dumps({**said, "pad_token": "11"}))
    merged = write(tmp_path / "merged", "qwen2")
    faults, _ = compare_tokenizers(load_tokenizer(merged, trust=False), job)
    assert [fault for fault in faults if "pad_token is '<eos>'" in fault and "should be '11'" in fault]
    (merged / "tokenizer_config.json").write_bytes((adapter / "tokenizer_config.json").read_bytes())
    assert compare_tokenizers(load_tokenizer(merged, trust=False), job) == ([], [])
