"""The card's YAML block: what the Hub reads of it."""

from __future__ import annotations

import re

import yaml

from bot.assets import read_json
from bot.metadata import fields, hub_lists
from bot.metadata.license_fields import Stated
from bot.records import Json, Source
from bot.report_document import MergeFacts

OURS = ("adapter-merge", "merged")
# Said of adapters, untrue of the merged model, or written by the Hub itself (those have a colon).
NOT_CARRIED = {"peft", "adapter", "lora", "qlora", "dora", "transformers", "safetensors", "pytorch"}
TASKS_BY_HEAD = (
    ("ForCausalLM", "text-generation"),
    ("LMHeadModel", "text-generation"),
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForMaskedLM", "fill-mask"),
    ("ForImageClassification", "image-classification"),
    ("ForSpeechSeq2Seq", "automatic-speech-recognition"),
    ("ForCTC", "automatic-speech-recognition"),
)


def block(merge: MergeFacts, *, base: Source, adapter: Source, license: Stated, task: str | None) -> Json:
    """The metadata in the order in which people read it. `task`: what the model does, listed by the Hub or not."""
    metadata: Json = {}
    if base.repo:
        relation = "finetune" if merge.form in ("none", "same") else "quantized"
        metadata |= {"base_model": base.repo, "base_model_relation": relation}
    metadata["library_name"] = "transformers"
    if task in hub_lists.tasks():
        metadata["pipeline_tag"] = task
    metadata |= license.fields
    left = fields.Left()
    carried = {
        "language": fields.languages(adapter.card, left) or fields.languages(base.card, left),
        "datasets": fields.datasets(adapter.card, left),
        "metrics": fields.metrics(adapter.card, left),
        "tags": _tags(merge, adapter, left),
    }
    return metadata | {name: values for name, values in carried.items() if values}


def dump(metadata: Json) -> str:
    """YAML, every value quoted where it must be."""
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000)


def preview(base: Source, adapter: Source, license: Stated) -> str:
    """A card with the metadata that a merge of these will have, as far as the Hub may refuse it."""
    metadata = block(MergeFacts.of({}), base=base, adapter=adapter, license=license, task=task_of(base, adapter))
    return f"---\n{dump(metadata)}---\n"


def _tags(merge: MergeFacts, adapter: Source, left: fields.Left) -> list[str]:
    method = str(merge.method or "").lower()
    own = "lora" if "lora" in method else re.sub(r"[^a-z0-9]+", "-", method).strip("-")
    carried = [tag for tag in fields.tags(adapter.card, left) if ":" not in tag and tag.lower() not in NOT_CARRIED]
    return [tag for tag in dict.fromkeys((*OURS, own, *carried)) if tag]


def task_of(base: Source, adapter: Source) -> str | None:
    """The task: as the adapter's card says, else the base's, else by the model's class; None where nothing tells.

    One that the Hub no longer lists (text2text-generation) is a task all the same.
    """
    for source in (adapter, base):
        task = source.card.get("pipeline_tag")
        if isinstance(task, str) and (task in hub_lists.tasks() or task == "text2text-generation"):
            return task
    return head_of(read_json(base, "config.json"))


def head_of(config: Json) -> str | None:
    """The task that the model's class is made for; None for one without a head, or with one that is not known here."""
    head = class_of(config)
    for ending, task in TASKS_BY_HEAD:
        if head.endswith(ending):
            return task
    if head.endswith("ForConditionalGeneration"):
        if head.startswith("Whisper"):
            return "automatic-speech-recognition"
        return "image-text-to-text" if "vision_config" in config else "text2text-generation"
    return None


def class_of(config: Json) -> str:
    """The name of the model's class; empty where the config has none."""
    classes = config.get("architectures")
    return next((name for name in classes if isinstance(name, str)), "") if isinstance(classes, list) else ""


def quantised(base: Source) -> bool:
    """Whether the base's checkpoint is stored quantised."""
    return bool(read_json(base, "config.json").get("quantization_config"))
