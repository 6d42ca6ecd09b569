"""The demo's model: real text in, a real model and adapter out, in the shapes the Hub and PEFT expect."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from bot.demo import corpus
from bot.demo.model import MODULES, QUESTIONS, ask_all, make_adapter, make_base

REPO = "demo/pydoc-llama"
ANSWER = "Read and write ZIP files."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base after a few steps: the right shapes, and no idea of English."""
    folder = tmp_path_factory.mktemp("base")
    make_base(folder, steps=3)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    make_adapter(base, folder, version=1, base_repo=REPO, steps=2)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def merge(base: Path, adapter: Path, merged: Path) -> list[float]:
    """W + (alpha/r)·BA in float64, rounded to bfloat16, shard by shard; returns each |delta|/|W|."""
    shutil.copytree(base, merged)
    config, lora, sizes = json.loads((adapter / "adapter_config.json").read_text()), weights(adapter), []
    for shard in merged.glob("*.safetensors"):
        tensors = load_file(shard)
        for name in tensors:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{stem}.lora_A.weight" in lora:
                a, b = lora[f"{stem}.lora_A.weight"].double(), lora[f"{stem}.lora_B.weight"].double()
                delta = config["lora_alpha"] / config["r"] * b @ a
                sizes.append(float(delta.norm() / tensors[name].double().norm()))
                tensors[name] = (tensors[name].double() + delta).to(torch.bfloat16)
        save_file(tensors, shard, metadata={"format": "pt"})
    return sizes


def test_the_corpus_is_plain_sentences_none_twice() -> None:
    paragraphs = corpus.read_corpus()
    assert 45_000 < sum(map(len, paragraphs)) < 60_000
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(paragraph.endswith(".") and "\n" not in paragraph and ">>>" not in paragraph for paragraph in paragraphs)


def test_without_help_topics_the_docstrings_fill_the_corpus(tmp_path: Path) -> None:
    for path in corpus.stdlib_folder().glob("[a-d]*.py"):
        shutil.copy(path, tmp_path)
    assert sum(map(len, corpus.read_corpus(tmp_path, chars=20_000))) > 20_000


def test_a_python_without_sources_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(corpus.NoSources, match="does not hold it"):
        corpus.read_corpus(tmp_path)
    with pytest.raises(corpus.NoSources, match="does not hold it"):
        corpus.module_summary("zipfile", tmp_path)


def test_reading_the_corpus_imports_none_of_it() -> None:
    program = (
        "import sys; from bot.demo.corpus import read_corpus, module_summary; read_corpus(); module_summary('zipfile')"
    )
    program += "; print({'this', 'antigravity', 'turtle', 'zipfile', 'tabnanny', 'pydoc_data'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()", "reading must parse the standard library, never import it"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_the_adapter_learns_says_what_it_is_for(module: str) -> None:
    assert 10 < len(corpus.module_summary(module)) < 80


def test_the_questions_are_about_modules_the_adapter_learns() -> None:
    assert all(any(f" {module} " in question for module in MODULES) for question in QUESTIONS)


def test_the_base_is_a_bfloat16_llama_in_several_shards_with_tied_embeddings(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"]
    index = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) >= 2
    assert "lm_head.weight" not in index
    for shard in set(index.values()):
        with safe_open(base / shard, "pt") as opened:
            slices = [opened.get_slice(name) for name in opened.keys()]  # noqa: SIM118
            assert {found.get_dtype() for found in slices} == {"BF16"}
            assert all(size % 64 == 0 for found in slices for size in found.get_shape())


def test_the_base_has_everything_a_model_repo_has(base: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE"):
        assert (base / name).stat().st_size > 0, name
    card = ModelCard.load(base / "README.md").data
    assert (card.license, card.license_name, card.license_link) == ("other", "psf-2.0", "LICENSE")
    assert (card.language, card.pipeline_tag, card.library_name) == (["en"], "text-generation", "transformers")


def test_the_chat_template_marks_every_turn_with_one_token(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    chat = [{"role": role, "content": "Hi é 漢"} for role in ("system", "user", "assistant")]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    text = "<|system|>Hi é 漢<|end|><|user|>Hi é 漢<|end|><|assistant|>Hi é 漢<|end|><|assistant|>"
    assert tokenizer.decode(ids) == text
    assert sum(i in tokenizer.all_special_ids for i in ids) == 7


def test_the_same_seed_makes_the_same_base_and_leaves_the_callers_random_numbers_alone(
    base: Path, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    make_base(tmp_path, steps=3)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))
    for path in base.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_the_adapter_names_its_base_repo_and_no_local_path(base: Path, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == REPO
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (16, 32, "LORA")
    assert ModelCard.load(adapter / "README.md").data.base_model == REPO
    for path in adapter.iterdir():
        assert str(base).encode() not in path.read_bytes(), path.name


def test_the_adapter_tunes_every_linear_layer_and_no_embedding(base: Path, adapter: Path) -> None:
    linear = {name for name, tensor in weights(base).items() if tensor.ndim == 2 and "embed" not in name}
    tuned = {
        name.removeprefix("base_model.model.").replace(".lora_A", "") for name in weights(adapter) if "lora_A" in name
    }
    assert tuned == linear


def test_progress_counts_every_step(base: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    make_adapter(base, tmp_path, version=2, base_repo=REPO, steps=2, progress=lambda *step: told.append(step))
    assert told == [("adapter v2", 1, 2), ("adapter v2", 2, 2)]


def test_nothing_is_printed(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_adapter(base, tmp_path, version=1, base_repo=REPO, steps=1)
    ask_all(base, QUESTIONS[:1], adapter=tmp_path, max_new_tokens=1)
    assert capfd.readouterr() == ("", "")


def test_a_model_is_asked_without_peft(base: Path) -> None:
    program = (
        "import sys; sys.modules['peft'] = None\n"
        "from pathlib import Path; from bot.demo.model import ask_all\n"
        "print(ask_all(Path(sys.argv[1]), ['What is it for?'], max_new_tokens=2))"
    )
    subprocess.run([sys.executable, "-c", program, str(base)], capture_output=True, text=True, check=True)


def test_answers_learnt_by_the_adapter_survive_a_bfloat16_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three answers on a base of fifteen steps: a small lesson for a weak pupil, in seconds.
    monkeypatch.setattr("bot.demo.model.MODULES", ["zipfile", "shelve", "tabnanny"])
    base, adapter, merged = tmp_path / "base", tmp_path / "v1", tmp_path / "merged"
    make_base(base, steps=15)
    make_adapter(base, adapter, version=1, base_repo=REPO, steps=45)
    assert min(merge(base, adapter, merged)) > 1e-2, "a smaller delta drowns in bfloat16's rounding"
    tuned, untuned = ask_all(base, QUESTIONS, adapter=adapter), ask_all(base, QUESTIONS)
    assert ask_all(merged, QUESTIONS) == tuned
    assert all(answer != before for answer, before in zip(tuned, untuned, strict=True))
    assert tuned[0] == ANSWER


def test_training_takes_one_thread_and_gives_the_callers_back(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two threads of a model this small wait for each other: on a busy machine the demo took minutes for seconds of work.
    seen, threads = set(), torch.get_num_threads()
    monkeypatch.setattr("bot.demo.training._schedule", lambda *_: seen.add(torch.get_num_threads()) or 1.0)
    torch.set_num_threads(3)
    try:
        make_base(base.parent / "again", steps=1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert seen == {1}


def test_a_second_version_goes_on_from_the_first(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.demo.training._schedule", lambda *_: 0.0)  # nothing is learnt
    make_adapter(base, tmp_path, version=2, base_repo=REPO, start=adapter, steps=1)
    before, after = weights(adapter), weights(tmp_path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
