"""What the Hub derives from a repo's files: card metadata, tags, config, safetensors parameters."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import yaml

from . import card_rules as rules
from .objects import Objects
from .records import Entry

FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
CARD_LIMIT = 1 << 20
HEADER_LIMIT = 100 << 20


class _Loader(yaml.SafeLoader):
    """YAML 1.2, as the Hub reads it: `no` is a language, not a boolean."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def load(block: str) -> Any:
    """What a metadata block holds. Raises YAMLError."""
    return yaml.load(block, Loader=_Loader)


def front_matter(text: str) -> str | None:
    """The YAML block at the top of a README, None where there is none."""
    match = FRONT_MATTER.match(text)
    return match.group(1) if match else None


def metadata(text: str) -> dict[str, Any]:
    """The card's metadata; {} where it is missing or not valid YAML."""
    block = front_matter(text)
    try:
        content = load(block) if block else None
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def problems(text: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a README, as `/api/validate-yaml` reports them."""
    block = front_matter(text)
    if block is None:
        return [], ["empty or missing yaml metadata in repo card (https://huggingface.co/docs/hub/model-cards)"]
    try:
        content = load(block)
    except yaml.YAMLError as error:
        return [f"Invalid YAML in the metadata: {' '.join(str(error).split())}"], []
    if content is None:
        return [], ["empty or missing yaml metadata in repo card (https://huggingface.co/docs/hub/model-cards)"]
    if not isinstance(content, dict):
        return ["The metadata must be a YAML object"], []
    return [*rules.errors(content)], [*rules.warnings(content)]


def strings(value: Any) -> list[str]:
    """A metadata field that may be one string or a list."""
    if isinstance(value, str):
        return [value]
    return [str(item) for item in value] if isinstance(value, list) else []


def tags(content: Mapping[str, Any], files: Iterable[str]) -> list[str]:
    """The repo's tags: those on the card, and those the Hub adds for library, formats, base model and license."""
    labels = [*strings(content.get("library_name"))]
    names = list(files)
    if any(name.endswith(".safetensors") for name in names):
        labels.append("safetensors")
    labels += strings(content.get("pipeline_tag")) + strings(content.get("tags")) + strings(content.get("language"))
    labels += [f"dataset:{name}" for name in strings(content.get("datasets"))]
    relation = content.get("base_model_relation") or ("adapter" if "adapter_config.json" in names else "finetune")
    for base in strings(content.get("base_model")):
        labels += [f"base_model:{base}", f"base_model:{relation}:{base}"]
    labels += [f"license:{name}" for name in strings(content.get("license"))] + ["region:us"]
    return list(dict.fromkeys(labels))


def load_json(objects: Objects, entry: Entry | None) -> dict[str, Any] | None:
    """A small JSON object file of the repo, None where it is missing or broken."""
    if entry is None or entry.size > HEADER_LIMIT:
        return None
    try:
        content = json.loads(objects.read(entry.sha256))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def config(objects: Objects, files: Mapping[str, Entry]) -> dict[str, Any] | None:
    """The part of config.json (or of an adapter's config) that the Hub shows."""
    content = load_json(objects, files.get("config.json"))
    if content is not None:
        shown = ("architectures", "model_type", "quantization_config")
        return {key: content[key] for key in shown if key in content}
    adapter = load_json(objects, files.get("adapter_config.json"))
    if adapter is not None:
        shown = ("base_model_name_or_path", "task_type", "peft_type")
        return {"peft": {key: adapter[key] for key in shown if key in adapter}}
    return None


def parameters(objects: Objects, files: Mapping[str, Entry]) -> dict[str, Any] | None:
    """Parameter counts by dtype over the root's safetensors files."""
    counts: dict[str, int] = {}
    for path, entry in files.items():
        if path.endswith(".safetensors") and "/" not in path:
            for dtype, count in _counts(str(objects.path(entry.sha256))):
                counts[dtype] = counts.get(dtype, 0) + count
    return {"parameters": counts, "total": sum(counts.values())} if counts else None


@lru_cache(maxsize=1024)
def _counts(path: str) -> tuple[tuple[str, int], ...]:
    counts: dict[str, int] = {}
    for tensor in (safetensors_header(path) or {}).values():
        if isinstance(tensor, dict) and "dtype" in tensor:
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + prod(tensor.get("shape", []))
    return tuple(counts.items())


def safetensors_header(path: str) -> dict[str, Any] | None:
    """The JSON header of a safetensors file, None where it is not one."""
    try:
        with Path(path).open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= HEADER_LIMIT else None
    except (OSError, ValueError, struct.error):
        return None
    return header if isinstance(header, dict) else None
