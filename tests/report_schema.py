"""docs/verification.schema.json, as the tests hold every report to it: a field that it does not describe is a fault."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA = Path(__file__).parents[1] / "docs" / "verification.schema.json"
EXAMPLE = {
    "base": {"repo": "o/base", "sha": "b" * 40},
    "adapter": {"repo": "o/adapter", "sha": "a" * 40},
    "recipe": "1",
}


def published() -> dict[str, Any]:
    """The schema as readers get it: what it does not name may come in later versions."""
    schema: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return schema


def closed(schema: Any) -> Any:
    """The same where every object has the fields that are described and no others."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(value) for name, value in schema.items()}
    shut = isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema
    return inner | ({"additionalProperties": False} if shut else {})


@cache
def validator() -> Draft202012Validator:
    return Draft202012Validator(closed(published()))


def misfits(document: bytes) -> list[str]:
    """How a verification.json differs from what the schema says of it."""
    return [f"{error.json_path}: {error.message}" for error in validator().iter_errors(json.loads(document))]
