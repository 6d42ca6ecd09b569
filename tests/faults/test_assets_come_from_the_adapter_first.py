"""Tokenizer and chat template: the adapter's where it ships them, else the base's, wherever they are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.faults.conftest import named, prove
from tests.faults.models import Built, save_tokenizer


@pytest.fixture
def adapter(llama: Built, tmp_path: Path) -> Path:
    """The adapter, with a tokenizer of its own whose chat template differs."""
    folder = Path(shutil.copytree(llama.adapter, tmp_path / "adapter"))
    save_tokenizer(folder, template="{{ 'the adapter says: ' + messages[0].content }}")
    return folder


def status(llama: Built, copy: Path, adapter: Path, check: str) -> str:
    return named(prove(llama, copy, adapter=adapter, level="files"), check).status


def test_the_bases_template_is_wrong_where_the_adapter_ships_one(llama: Built, copy: Path, adapter: Path):
    assert status(llama, copy, adapter, "chat-template") == "fail"


def test_the_adapters_files_are_right(llama: Built, copy: Path, adapter: Path):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(adapter / name, copy / name)
    assert status(llama, copy, adapter, "chat-template") == status(llama, copy, adapter, "tokenizer") == "pass"


def test_a_template_inside_tokenizer_config_hides_behind_the_bases_jinja_file(llama: Built, copy: Path, adapter: Path):
    template = (adapter / "chat_template.jinja").read_text()
    (adapter / "chat_template.jinja").unlink()
    config = json.loads((adapter / "tokenizer_config.json").read_text())
    (adapter / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(adapter / name, copy / name)
    assert status(llama, copy, adapter, "chat-template") == "fail"  # the base's chat_template.jinja still wins
    (copy / "chat_template.jinja").unlink()
    assert status(llama, copy, adapter, "chat-template") == "pass"


def test_a_training_script_beside_the_adapter_is_not_model_code(llama: Built, copy: Path, adapter: Path):
    (adapter / "train.py").write_text("print('hello')")
    assert status(llama, copy, adapter, "custom-code") == "pass"


def test_lost_custom_code_is_a_fault(llama: Built, copy: Path, adapter: Path, tmp_path: Path):
    base = Path(shutil.copytree(llama.base, tmp_path / "base"))
    (base / "modeling_own.py").write_text("class Own: ...")
    assert named(prove(llama, copy, base=base, level="files"), "custom-code").status == "fail"
