"""The card says in ten seconds what was merged, that it was proven, and how to load it; foreign words stay words."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from bot.card import UNNAMED, render, retarget
from bot.project import NAME, REPOSITORY
from bot.records import Asset
from bot.report_document import Document
from tests.publish.given import ADAPTER, BASE, SHA, TARGET, report, source


def base_source(config=None, **more):
    told = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]} | (config or {})
    return source("base", BASE, texts={"config.json": json.dumps(told).encode()}, **more)


def made(document=None, *, base=None, adapter=None, target=TARGET, license=None, assets=(), pictured=False):
    document = document or report({"model.safetensors": "ab" * 32, "config.json": "cd" * 32})
    return render(
        Document.of(document),
        target=target,
        base=base or base_source(),
        adapter=adapter or source("adapter", ADAPTER),
        license=license,
        assets=assets,
        pictured=pictured,
    )


def test_the_hub_reads_the_metadata(hub):
    adapter = source(
        "adapter", ADAPTER, tags=("v1.0",),
        card={"license": "mit", "language": ["de", False], "datasets": "a/b", "tags": ["lora", "sft", "base_model:x"]},
    )  # fmt: skip
    text = made(adapter=adapter)
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "base_model": BASE,
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "language": ["de", "no"],
        "datasets": ["a/b"],
        "tags": ["adapter-merge", "merged", "lora", "sft"],
    }
    hub.check_card(text)


def test_the_first_lines_say_it_all():
    head, _, rest = made().split("---\n", 2)[2].partition("## Load it")
    assert "# merged" in head
    assert f"[{ADAPTER}](https://huggingface.co/{ADAPTER}) merged into [{BASE}]" in head
    assert "PEFT is not needed." in head
    assert (
        "Verified at level weights: every one of 64 weights is base plus adapter, rounded once; the models were not run."
        in head
    )
    for row in ("| elements that differ | 0 of 64 |", "| tensors changed | 1 of 4, as planned |",
                "| delta that survived rounding | 99.8% |",
                "| size of the delta, ‖D‖/‖W‖ | not measured |", "| K, distance in roundings | not run: Too little memory. |",
                "| top-1 agreement | not run: Too little memory. |"):  # fmt: skip
        assert row in head
    assert 'AutoModelForCausalLM.from_pretrained("demo/merged"' in rest
    assert "vllm serve demo/merged" in rest


def test_what_was_merged_stands_below_how_to_load_it():
    text = made()
    merged = text.partition("## What was merged")[2].partition("## Evidence")[0]
    assert f"[`{SHA[:12]}`](https://huggingface.co/{ADAPTER}/tree/{SHA})" in merged
    assert "LoRA, rank 8, scaling 2" in merged
    assert "tensors: 1 merged, 3 copied byte for byte" in merged


def test_checks_with_nothing_to_look_at_are_folded():
    document = report({})
    none = {"id": "tokenizer", "group": "tokenizer", "status": "pass", "measured": "none", "allowed": "same bytes",
            "why": "There is no tokenizer file to keep.", "worst": [], "seconds": 0.0}  # fmt: skip
    document["checks"] = [*({**check, "group": "weights"} for check in document["checks"]), none]
    table, _, folded = made(document).partition("## Evidence")[2].partition("## Reproduce")[0].partition("<details>")
    assert "| weights | touched | 0 of 64 elements differ | 0 | pass |\n| | retention | 0.998 | ≥ 0.9 | pass |" in table
    assert "tokenizer" not in table
    assert "<summary>1 more check passed with nothing to look at</summary>" in folded
    assert "- tokenizer: There is no tokenizer file to keep." in folded


def test_the_picture_is_shown_where_it_lies_beside_the_card():
    assert "verification.png" not in made()
    assert (
        "as a share of the weight, by layer and module](verification.png)"
        in made(pictured=True).partition("## Load it")[0]
    )


def test_the_card_names_the_tool_by_the_address_that_the_package_has():
    package = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert (package["name"], package["urls"]["Source"]) == (NAME, REPOSITORY)
    assert f"| made by | [adapter-merge]({REPOSITORY}) |" in made()


def test_it_says_what_was_not_run_and_how_to_get_the_same_bytes():
    text = made()
    assert "- full: not run: Too little memory." in text
    assert f"adapter-merge merge {ADAPTER}@{SHA} --base {BASE}@{SHA} --output merged" in text
    assert "adapter-merge verify demo/merged" in text
    assert f"{'ab' * 32}  model.safetensors" in text
    assert "config.json" not in text


def test_options_that_change_the_bytes_are_part_of_the_command():
    document = report({})
    document["merge"]["options"] = {"dtype": "float16", "base_weights": "stored", "quantize": "none"}
    assert f"@{SHA} --dtype float16 --base-weights stored --output" in made(document)


def test_a_merge_that_failed_says_so():
    likely = {"kind": "scaling", "sentence": "the adapter was added *twice*.", "tensors": [], "figures": {}}
    head = made(report({}, verdict="not-verified", cause=likely)).partition("## Load it")[0]
    assert "Do not use it: it is not verified." in head
    assert "Not verified: touched failed (0 of 64 elements differ): every merged element is correctly rounded." in head
    assert "**Most likely: the adapter was added \\*twice\\*.**" in head


def test_a_merge_whose_weights_were_not_recomputed_is_not_called_proven():
    document = report({})
    document["checks"] = document["checks"][1:]
    text = made(document)
    assert "Every merged weight was computed again" not in text
    assert "Verified at level files: the files are whole, and no weight was compared" in text


def test_where_a_separate_adapter_serves_better_the_card_says_so():
    assert "Keeping the adapter separate" not in made()
    weak = report({})
    weak["checks"][1] |= {"measured": "0.614", "status": "warn", "why": "Rounding loses part of the tune."}
    assert "keeps only 61% of what the adapter changes" in made(weak)
    assert "- retention: Rounding loses part of the tune." in made(weak)
    quantised = base_source({"quantization_config": {"quant_method": "bitsandbytes"}})
    assert "The base is quantised" in made(base=quantised)


@pytest.mark.parametrize(
    ("architecture", "tag", "model"),
    [
        ("LlamaForCausalLM", "text-generation", "AutoModelForCausalLM"),
        ("BertForSequenceClassification", "text-classification", "AutoModelForSequenceClassification"),
        ("T5ForConditionalGeneration", None, "AutoModelForSeq2SeqLM"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition", "AutoModelForSpeechSeq2Seq"),
        ("BertModel", None, "AutoModel"),
        ("Wav2Vec2ForCTC", "automatic-speech-recognition", "AutoModelForCTC"),
    ],
)
def test_the_task_follows_the_model(architecture, tag, model):
    text = made(base=base_source({"architectures": [architecture]}))
    assert ModelCard(text).data.to_dict().get("pipeline_tag") == tag
    assert f"model = {model}.from_pretrained" in text
    assert ("vllm" in text) == (tag == "text-generation")


def test_a_vision_model_is_loaded_with_its_processor():
    base = base_source({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}})
    assert "AutoModelForImageTextToText, AutoProcessor" in made(base=base)


def test_a_card_with_a_task_wins_over_the_class():
    adapter = source("adapter", ADAPTER, card={"pipeline_tag": "feature-extraction"})
    assert ModelCard(made(adapter=adapter)).data.pipeline_tag == "feature-extraction"


def test_custom_code_is_announced():
    text = made(base=base_source({"auto_map": {"AutoModel": "modeling.X"}}))
    assert "trust_remote_code=True" in text
    assert "read it first" in text


def test_licenses_follow_the_inputs():
    base = base_source(card={"license": "other", "license_name": "Llama 9", "license_link": "LICENSE"})
    data = ModelCard(made(base=base)).data
    assert (data.license, data.license_name) == ("other", "llama-9")
    assert data.license_link == f"https://huggingface.co/{BASE}/blob/{SHA}/LICENSE"
    both = made(base=base, adapter=source("adapter", ADAPTER, card={"license": "mit"}))
    assert ModelCard(both).data.license_name == "llama-9"
    assert "| license | other (llama-9) (the base's is other (llama-9); the adapter's is mit) |" in both
    asked = made(base=base, license="apache-2.0")
    assert ModelCard(asked).data.license == "apache-2.0"
    assert "apache-2.0, as asked for (the base's is other (llama-9))" in asked


def test_folders_are_named_by_their_content_only(tmp_path):
    text = made(base=source("base", None), adapter=source("adapter", None), target=None)
    assert "base_model" not in ModelCard(text).data.to_dict()
    assert "a local folder, `sha256:0123456789ab`" in text
    assert "adapter-merge merge ./adapter --base ./base" in text
    assert str(tmp_path) not in text
    assert "/x" not in text.replace("https://", "")


def test_foreign_words_cannot_break_out(hub):
    evil = "x\n---\n# owned\n<script>alert(1)</script> | [click](http://evil) `code` ${title}"
    document = report({})
    document["checks"][0] |= {"measured": evil, "status": "warn", "why": evil}
    document["merge"]["method"] = evil
    adapter = source("adapter", ADAPTER, tags=(evil,), card={"license": evil, "tags": [evil], "language": [evil]})
    text = made(document, adapter=adapter)
    front, body = text.split("---\n", 2)[1:]
    assert yaml.safe_load(front)["base_model"] == BASE
    assert "\n# owned" not in body
    assert "<script>" not in body.replace("\\<script", "")
    assert "](http://evil)" not in body.replace("\\](", "")
    assert all(line.count("|") - line.count("\\|") == 5 for line in body.splitlines() if line.startswith("| touched"))
    hub.check_card(text)


@pytest.mark.parametrize("document", [{}, {"merge": None, "checks": [], "verdict": "verified"}])
def test_a_sparse_report_still_makes_a_card(hub, document):
    hub.check_card(made({"verdict": "verified"} | document))


def test_another_target_changes_every_mention_and_nothing_else():
    adapter = source("adapter", "demo/merged-lora")
    text = made(adapter=adapter)
    moved = retarget(text, TARGET, "acme/final")
    assert "demo/merged" not in moved.replace("demo/merged-lora", "")
    assert 'from_pretrained("acme/final"' in moved
    assert "[demo/merged-lora]" in moved
    unnamed = made(
        target=None,
        base=base_source(card={"license": "other", "license_name": "own"}),
        assets=(Asset(name="LICENSE.txt", source="base", why="license"),),
    )
    assert f"license_link: https://huggingface.co/{UNNAMED}/blob/main/LICENSE.txt\n" in unnamed
    assert UNNAMED in unnamed
    assert UNNAMED not in retarget(unnamed, None, "acme/final")
    assert "license_link: https://huggingface.co/acme/final/blob/main/" in retarget(unnamed, None, "acme/final")
