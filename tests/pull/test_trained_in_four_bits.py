"""An adapter that was trained on a base in four bits says so somewhere, and the merge into plain weights is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bot import trained_base
from bot.pull.texts import card_of
from bot.records import Options, Source
from tests.factory import save_adapter, save_base
from tests.publish.given import source
from tests.steps import plan_folders
from tests.stories.conftest import Command, adapter_merge

__all__ = ["adapter_merge"]

PEFT = """---
library_name: peft
base_model: meta-llama/Llama-2-7b-hf
---
## Training procedure


The following `bitsandbytes` quantization config was used during training:
- quant_method: bitsandbytes
- load_in_8bit: False
- load_in_4bit: True
- llm_int8_threshold: 6.0
- llm_int8_skip_modules: None
- llm_int8_enable_fp32_cpu_offload: False
- llm_int8_has_fp16_weight: False
- bnb_4bit_quant_type: {kind}
- bnb_4bit_use_double_quant: {double}
- bnb_4bit_compute_dtype: bfloat16
### Framework versions


- PEFT 0.6.2
"""
PEFT_8BIT = PEFT.replace("load_in_8bit: False", "load_in_8bit: True").replace(
    "load_in_4bit: True", "load_in_4bit: False"
)
AXOLOTL = """---
library_name: peft
license: apache-2.0
base_model: NousResearch/Meta-Llama-3-8B
tags:
- axolotl
- generated_from_trainer
model-index:
- name: outputs/out
  results: []
---
[<img src="https://raw.githubusercontent.com/axolotl-ai-cloud/axolotl/main/image/axolotl-badge-web.png"/>](https://github.com/axolotl-ai-cloud/axolotl)
<details><summary>See axolotl config</summary>

axolotl version: `0.8.0`
```yaml
base_model: NousResearch/Meta-Llama-3-8B
load_in_8bit: false
load_in_4bit: {four}
strict: false
adapter: {adapter}
lora_r: 32
lora_alpha: 16
```

</details><br>
"""
TRL = """---
base_model: mistralai/Mistral-7B-v0.1
library_name: peft
tags:
- alignment-handbook
- trl
- sft
---
# zephyr-7b-sft

## Training config

    model_name_or_path: mistralai/Mistral-7B-v0.1
    use_peft: true
    load_in_4bit: true
    lora_r: 16
"""
UNSLOTH = """---
base_model: {base}
tags:
- text-generation-inference
- transformers
- unsloth
- llama
- trl
license: apache-2.0
---

# Uploaded  model

- **Developed by:** somebody
- **License:** apache-2.0
- **Finetuned from model :** {from_}

This llama model was trained 2x faster with [Unsloth](https://github.com/unslothai/unsloth) and Huggingface's TRL library.
"""
TAGGED = "---\nlibrary_name: peft\ntags: [lora, {tag}]\n---\nAn adapter.\n"
PLAIN = """---
base_model: meta-llama/Llama-2-7b-hf
library_name: peft
tags:
- lora
- trl
---
To save memory, load it in 4 bits: `AutoModelForCausalLM.from_pretrained("x", load_in_4bit=True)`.
# load_in_4bit: true
load_in_4bit: false
adapter: lora
"""

SAYS: dict[str, tuple[str, dict[str, str], str]] = {
    "a tag": (TAGGED.format(tag="qlora"), {}, "its card has the tag qlora"),
    "a tag in capitals": (TAGGED.format(tag="QLoRA"), {}, "its card has the tag qlora"),
    "a name": ("", {"repo": "somebody/llama-qlora-v2"}, "it is called llama-qlora-v2"),
    "PEFT's card": (PEFT.format(kind="nf4", double=True), {}, "its card says load_in_4bit: true"),
    "PEFT's card, of other four bits": (
        PEFT.format(kind="fp4", double=False), {},
        "load_in_4bit: true and bnb_4bit_quant_type: fp4, bnb_4bit_use_double_quant: false (which --quantization-config takes)",
    ),
    "axolotl's config": (AXOLOTL.format(four="true", adapter="qlora"), {}, "its card says load_in_4bit: true"),
    "axolotl's adapter": (AXOLOTL.format(four="", adapter="qlora"), {}, "its card says adapter: qlora"),
    "TRL's config": (TRL, {}, "its card says load_in_4bit: true"),
    "unsloth's base": (
        UNSLOTH.format(base="unsloth/llama-3-8b-bnb-4bit", from_="unsloth/llama-3-8b-bnb-4bit"), {},
        "its card names llama-3-8b-bnb-4bit as its base",
    ),
    "unsloth's sentence": (
        UNSLOTH.format(base="meta-llama/Meta-Llama-3-8B", from_="unsloth/llama-3-8b-bnb-4bit"), {},
        "its card says that it was finetuned from unsloth/llama-3-8b-bnb-4bit",
    ),
    "PEFT's config": ("", {"base": "unsloth/Qwen3-8B-unsloth-bnb-4bit"}, "its config names Qwen3-8B-unsloth-bnb-4bit"),
    "a folder in PEFT's config": ("", {"base": "/home/me/models/llama-bnb-4bit/"}, "its config names llama-bnb-4bit as"),
}  # fmt: skip
SILENT: dict[str, tuple[str, dict[str, str]]] = {
    "no card": ("", {}),
    "a card of a LoRA in 16 bits": (PLAIN, {}),
    "eight bits": (PEFT_8BIT.format(kind="fp4", double=False), {}),
    "axolotl's LoRA": (AXOLOTL.format(four="false", adapter="lora"), {}),
    "unsloth in 16 bits": (UNSLOTH.format(base="unsloth/llama-3-8b", from_="unsloth/llama-3-8b"), {}),
    "a name that only looks like it": ("", {"repo": "somebody/sqlora", "base": "somebody/model-4bit-paper"}),
}


def adapter_of(card: str, said: dict[str, str]) -> Source:
    config = {"peft_type": "LORA", "base_model_name_or_path": said.get("base", "meta-llama/Llama-2-7b-hf")}
    texts = {"README.md": card.encode(), "adapter_config.json": json.dumps(config).encode()}
    return source("adapter", said.get("repo", "somebody/adapter"), texts=texts, card=card_of(texts))


@pytest.mark.parametrize("case", SAYS)
def test_the_evidence_is_named(case: str):
    card, said, words = SAYS[case]
    found = trained_base.in_four_bits(adapter_of(card, said))
    assert found is not None
    assert words in found


@pytest.mark.parametrize("case", SILENT)
def test_where_there_is_none_nothing_is_said(case: str):
    assert trained_base.in_four_bits(adapter_of(*SILENT[case])) is None


@pytest.mark.parametrize("odd", [{"base_model": 7, "tags": 3}, {"base_model": [None, {}], "tags": [None, 5, {}]}])
def test_odd_cards_are_read_like_others(odd: dict[str, object]):
    assert trained_base.in_four_bits(source("adapter", "a/b", card=odd, texts={"README.md": b"\xff\n" * 9})) is None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("qlora")
    base = save_base("llama", root / "base")
    adapter = save_adapter(base, "llama", root / "adapter")
    (adapter / "README.md").write_text(AXOLOTL.format(four="true", adapter="qlora"))
    return base, adapter


def test_plan_report_and_card_name_it(tiny: tuple[Path, Path], adapter_merge: Command, tmp_path: Path):
    base, adapter = tiny
    (warning,) = plan_folders(base, adapter).warnings
    assert "load_in_4bit: true" in warning
    assert "--base-weights simulate-nf4" in warning
    output = tmp_path / "merged"
    ran = adapter_merge("merge", adapter, "--base", base, "--output", output, "--verify", "files")
    assert ran.code == 0
    assert f"! {warning}" in ran.err
    report = json.loads((output / "verification.json").read_text())
    (found,) = [check for check in report["checks"] if check["id"] == "base-weights"]
    assert (found["status"], found["why"], report["verdict"]) == ("warn", warning, "verified")
    assert f"- base-weights: {warning}".replace("_", "_") in (output / "README.md").read_text()
    ran = adapter_merge("verify", output, "--base", base, "--adapter", adapter, "--verify", "files")
    assert warning in ran.err


def test_every_one_of_several_adapters_is_asked(tiny: tuple[Path, Path], tmp_path: Path, adapter_merge: Command):
    base, adapter = tiny
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    (other / "README.md").write_text(PLAIN)
    ran = adapter_merge("plan", other, adapter, "--base", base, "--json")
    assert len(json.loads(ran.out)["warnings"]) == 1


def in_nf4(base: Path, folder: Path) -> Path:
    """The base as bitsandbytes would have saved it, as far as a plan looks."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    return folder


WITHOUT: dict[str, Callable[[Path, Path], tuple[Path, Options]]] = {
    "simulate-nf4": lambda base, _: (base, Options(base_weights="simulate-nf4")),
    "a quantised base": lambda base, root: (in_nf4(base, root / "nf4"), Options()),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_where_the_weights_are_those_of_the_training_nothing_is_said(
    tiny: tuple[Path, Path], tmp_path: Path, case: str
):
    base, options = WITHOUT[case](tiny[0], tmp_path)
    assert plan_folders(base, tiny[1], options).warnings == ()


def test_with_simulate_nf4_the_report_is_content(tiny: tuple[Path, Path], adapter_merge: Command, tmp_path: Path):
    base, adapter = tiny
    merge = partial(
        adapter_merge, "merge", adapter, "--base", base, "--output", tmp_path / "merged", "--verify", "files"
    )
    assert merge("--base-weights", "simulate-nf4").code == 0
    checks = json.loads((tmp_path / "merged" / "verification.json").read_text())["checks"]
    assert [one["status"] for one in checks if one["id"] == "base-weights"] == ["pass"]
