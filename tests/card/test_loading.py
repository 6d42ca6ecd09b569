"""The card's lines that load the model are made for this model: they run as they stand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bot.card import loading
from bot.records import Asset
from tests.factory import save_base, save_tokenizer
from tests.publish.given import source


def made(folder: Path) -> loading.ModelToLoad:
    """The merged model in a folder, as its plan knows it."""
    texts = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    assets = [
        Asset(name=path.name, source="base", why="") for path in folder.iterdir() if path.suffix != ".safetensors"
    ]
    return loading.ModelToLoad(
        base=source("base", "me/base", texts=texts), adapter=source("adapter", "me/a"), assets=assets
    )


def blocks(text: str, language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def described(config: dict[str, Any], names: tuple[str, ...] = (), task: str | None = None, **more: Any) -> str:
    """The section for a model with this config.json and files of these names."""
    base = source("base", "me/base", texts={"config.json": json.dumps(config).encode()})
    assets = tuple(Asset(name=name, source="base", why="") for name in names)
    found = loading.ModelToLoad(base=base, adapter=source("adapter", "me/a"), assets=assets)
    return loading.section("me/merged", task, found, **more)


@pytest.mark.parametrize("name", ["llama", "llama without a template", "t5", "bert-classifier", "bert-encoder"])
def test_the_lines_run_as_they_stand(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tokenizer(save_base(name.split()[0], tmp_path / "model"))
    if name.endswith("template"):
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    if name == "t5":  # as every real one says
        (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 0, "pad_token_id": 0}))
    text = loading.section(str(folder), None, made(folder))
    assert ("apply_chat_template" in text) == (name == "llama")
    exec(blocks(text, "python"), {})
    if name == "bert-classifier":
        assert "LABEL_" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "names", "needs"),
    [
        ({"architectures": ["LlamaForCausalLM"], "transformers_version": "5.3.0.dev0"}, (), '"transformers>=5.3" torch accelerate'),
        ({"architectures": ["LlamaForCausalLM"], "transformers_version": "4.31.0"}, (), '"transformers>=4.56" torch accelerate'),
        ({"architectures": ["BertForMaskedLM"]}, (), '"transformers>=4.56" torch'),
        ({"architectures": ["LlamaForCausalLM"]}, ("tokenizer.model",), '"transformers>=4.56" torch accelerate sentencepiece'),
        ({"architectures": ["LlamaForCausalLM"]}, ("tokenizer.model", "tokenizer.json"), '"transformers>=4.56" torch accelerate'),
        ({"architectures": ["QWenLMHeadModel"]}, ("qwen.tiktoken",), '"transformers>=4.56" torch accelerate tiktoken'),
        ({"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "bitsandbytes"}}, (),
         '"transformers>=4.56" torch accelerate bitsandbytes'),
        ({"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "compressed-tensors"}}, (),
         '"transformers>=4.56" torch accelerate compressed-tensors'),
        ({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}, (),
         '"transformers>=4.56" torch accelerate pillow torchvision'),
        ({"architectures": 7, "quantization_config": {"quant_method": ["x"]}, "transformers_version": {}}, (),
         '"transformers>=4.56" torch'),
    ],
)  # fmt: skip
def test_it_says_what_must_be_installed(config: dict[str, Any], names: tuple[str, ...], needs: str) -> None:
    assert blocks(described(config, names), "bash").splitlines()[0] == f"pip install -U {needs}"


def test_the_class_is_the_models_whatever_task_a_card_names() -> None:
    text = described({"architectures": ["LlamaForCausalLM"]}, task="text-classification")
    assert "AutoModelForCausalLM" in text
    assert "AutoModelForSequenceClassification" in described({}, task="text-classification")
    assert "AutoModelForCTC" in described({"architectures": ["Wav2Vec2ForCTC"]})


def test_own_code_is_announced_and_another_hub_is_named() -> None:
    text = described({"architectures": ["XForCausalLM"], "auto_map": {"AutoModel": "x.Y"}}, hub="http://hub.example:1")
    assert "trust_remote_code=True" in text
    assert "read it first" in text
    assert "vllm serve me/merged --trust-remote-code" in text
    assert blocks(text, "bash").startswith("export HF_ENDPOINT=http://hub.example:1\n")
    assert "HF_ENDPOINT" not in described({})
