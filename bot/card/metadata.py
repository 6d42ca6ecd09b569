"""The card's YAML block: what the Hub reads of it."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from bot.records import Json, Source

OURS = ("adapter-merge", "merged")
# Said of adapters, untrue of the merged model, or written by the Hub itself (those have a colon).
NOT_CARRIED = {"peft", "adapter", "lora", "qlora", "dora", "transformers", "safetensors", "pytorch"}
TAGS_BY_HEAD = (
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


def block(merge: Json, *, base: Source, adapter: Source, license: str | None, tag: str | None) -> Json:
    """The metadata in the order in which people read it."""
    found: Json = {}
    if base.repo:
        form = (merge.get("options") or {}).get("quantize", "none")
        relation = "finetune" if form == "none" else "quantized"
        found |= {"base_model": base.repo, "base_model_relation": relation}
    found["library_name"] = "transformers"
    if tag:
        found["pipeline_tag"] = tag
    found |= _license(base, adapter, license)
    for key in ("language", "datasets"):
        values = _strings(adapter.card.get(key))
        if values:
            found[key] = values
    found["tags"] = _tags(merge, adapter)
    return found


def dump(found: Json) -> str:
    """YAML, every value quoted where it must be."""
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000)


def _license(base: Source, adapter: Source, license: str | None) -> Json:
    if license:
        return {"license": license}
    for source in (adapter, base):
        values = _strings(source.card.get("license"))
        if values:
            extra = {key: _strings(source.card.get(key)) for key in ("license_name", "license_link")}
            named = {key: found[0] for key, found in extra.items() if found}
            if named.get("license_link", "https:").partition(":")[0] not in ("http", "https") and source.repo:
                # A file of that repo; from ours the link would lead nowhere.
                named["license_link"] = f"https://huggingface.co/{source.repo}/blob/main/{named['license_link']}"
            return {"license": values[0] if len(values) == 1 else values, **named}
    return {}


def license_words(base: Source, adapter: Source, license: str | None) -> str:
    """The licenses that a user has to look at."""
    of_adapter = ", ".join(_strings(adapter.card.get("license")))
    of_base = ", ".join(_strings(base.card.get("license")))
    if license:
        return license + (f" (the base: {of_base})" if of_base and of_base != license else "")
    if of_adapter and of_base and of_adapter != of_base:
        return f"{of_adapter} (the adapter), {of_base} (the base): both apply"
    return of_adapter or of_base


def _tags(merge: Json, adapter: Source) -> list[str]:
    method = str(merge.get("method", "")).lower()
    own = ["lora" if "lora" in method else re.sub(r"[^a-z0-9]+", "-", method).strip("-")]
    carried = [tag for tag in _strings(adapter.card.get("tags")) if ":" not in tag and tag.lower() not in NOT_CARRIED]
    return [tag for tag in dict.fromkeys((*OURS, *own, *carried)) if tag]


def _strings(value: Any) -> list[str]:
    """A card's string or list of strings, as a list without repetitions."""
    values = value if isinstance(value, list) else [value]
    # YAML 1.1 reads the language code of Norwegian as the boolean False.
    words = ["no" if item is False else item for item in values]
    return list(dict.fromkeys(" ".join(word.split())[:200] for word in words if isinstance(word, str) and word.strip()))


def pipeline_tag(base: Source, adapter: Source) -> str | None:
    """The task: as the adapter's card says, else the base's, else by the model's class; None where nothing tells."""
    for source in (adapter, base):
        found = source.card.get("pipeline_tag")
        if isinstance(found, str) and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", found):
            return found
    config = config_of(base)
    classes = [name for name in config.get("architectures") or [] if isinstance(name, str)]
    head = classes[0] if classes else ""
    for ending, tag in TAGS_BY_HEAD:
        if head.endswith(ending):
            return tag
    if head.endswith("ForConditionalGeneration"):
        if head.startswith("Whisper"):
            return "automatic-speech-recognition"
        return "image-text-to-text" if "vision_config" in config else "text2text-generation"
    return None


def config_of(base: Source) -> Json:
    """The base's config.json, {} where there is none."""
    found = json.loads(base.texts.get("config.json", b"{}"))
    return found if isinstance(found, dict) else {}


def quantised(base: Source) -> bool:
    """Whether the base's checkpoint is stored quantised."""
    return bool(config_of(base).get("quantization_config"))
