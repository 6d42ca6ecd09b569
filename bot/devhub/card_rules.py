"""What the Hub checks of a model card's metadata, as https://github.com/huggingface/hub-docs/blob/main/modelcard.md documents it.

What it lists (licenses, languages, tasks) is in bot.metadata.hub_lists; the messages are the Hub's, as people quote them. What it
is only said to want (a task of the list, a name for `license: other`) is a warning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bot.metadata import hub_lists

RELATIONS = ("adapter", "finetune", "merge", "quantized")
NAME = r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
REPO = re.compile(rf"(?!.*(?:--|\.\.))({NAME}/)?{NAME}")
LICENSE_NAME = re.compile(r"[a-z0-9.-]+")
LINK = re.compile(r"LICENSE(\.md)?|https?://\S+")
LONGEST_TAG = 100
WORDS = (
    "library_name",
    "pipeline_tag",
    "license_name",
    "license_link",
    "base_model_relation",
    "new_version",
    "thumbnail",
)
LISTS = ("tags", "datasets", "metrics", "widget", "model-index")


def errors(content: Mapping[str, Any]) -> Iterator[str]:
    """Why the metadata is refused."""
    for key in WORDS:
        if key in content and not isinstance(content[key], str):
            yield f'"{key}" must be a string'
    for key in LISTS:
        if key in content and not isinstance(content[key], list):
            yield f'"{key}" must be an array'
    relation = content.get("base_model_relation")
    if isinstance(relation, str) and relation not in RELATIONS:
        yield f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]'
    yield from _license(content)
    yield from _language(content)
    for where, value in _values(content, "base_model"):
        if not isinstance(value, str) or not REPO.fullmatch(value):
            yield f'"{where}" with value "{value}" is not valid. Use a model id from https://hf.co/models.'
    for where, value in _values(content, "datasets"):
        if not isinstance(value, str):
            yield f'"{where}" must be a string'
        elif not REPO.fullmatch(value):
            yield f'"{where}" with value "{value}" is not valid. If possible, use a dataset id from https://hf.co/datasets.'
    for key in ("tags", "metrics"):
        for where, value in _values(content, key):
            if not isinstance(value, str) or not value:
                yield f'"{where}" must be a string'
            elif len(value) > LONGEST_TAG:
                yield f'"{where}" length must be less than or equal to {LONGEST_TAG} characters long'
    yield from _results(content.get("model-index"))


def warnings(content: Mapping[str, Any]) -> Iterator[str]:
    """What the Hub only remarks on."""
    task = content.get("pipeline_tag")
    if isinstance(task, str) and task not in hub_lists.tasks():
        yield f'The pipeline tag "{task}" is not in the official list: {", ".join(sorted(hub_lists.tasks()))}'
    if content.get("license") == "other" and not content.get("license_name"):
        yield 'Set a "license_name" for "license: other", and add the license to the repo'


def _values(content: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """Where each value of a field that may be a list stands, and the value."""
    field = content.get(key)
    if isinstance(field, list):
        yield from ((f"{key}[{number}]", value) for number, value in enumerate(field))
    elif key in content and key not in LISTS:
        yield key, field


def _license(content: Mapping[str, Any]) -> Iterator[str]:
    for where, value in _values(content, "license"):
        if not isinstance(value, str) or value not in hub_lists.licenses():
            yield f'"{where}" must be one of [{", ".join(hub_lists.licenses())}]'
    name, link = content.get("license_name"), content.get("license_link")
    if isinstance(name, str) and not LICENSE_NAME.fullmatch(name):
        yield '"license_name" must only contain lowercase characters, digits, dots and dashes, like my-license-1.0'
    if isinstance(link, str) and not LINK.fullmatch(link):
        yield '"license_link" must be LICENSE, LICENSE.md or a valid URL'


def _language(content: Mapping[str, Any]) -> Iterator[str]:
    for where, value in _values(content, "language"):
        if not isinstance(value, str):
            yield f'"{where}" must be a string'
        elif value != value.lower():
            yield f'"{where}" must only contain lowercase characters'
        elif value not in hub_lists.languages():
            yield (
                f'"{where}" with value "{value}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code (two/three '
                'letters), or a special value like "code", "multilingual". If you want to use BCP-47 identifiers, you can '
                "specify them in language_bcp47."
            )


def _results(index: Any) -> Iterator[str]:
    """The evaluation results: whose they are, the task's and the data set's type, and numbers with a name."""
    for number, model in enumerate(index if isinstance(index, list) else []):
        where = f"model-index[{number}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            yield f'"{where}.name" is required'
            continue
        for position, result in enumerate(model.get("results") or []):
            yield from _result(f"{where}.results[{position}]", result if isinstance(result, dict) else {})


def _result(where: str, result: Mapping[str, Any]) -> Iterator[str]:
    for part, names in (("task", ("type",)), ("dataset", ("type", "name"))):
        field = result.get(part)
        for name in names:
            if not isinstance(field, dict) or not isinstance(field.get(name), str):
                yield f'"{where}.{part}.{name}" must be a string'
    for number, metric in enumerate(result.get("metrics") or [{}]):
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str) or "value" not in metric:
            yield f'"{where}.metrics[{number}]" must have a type and a value'
        elif isinstance(metric["value"], float) and not math.isfinite(metric["value"]):
            yield f'"{where}.metrics[{number}].value" must be a finite number'
