"""What the Hub lists: license ids, tasks, language codes. Made by tools/make_hub_lists.py, out of the Hub's own documents."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

LICENSES_PAGE = "https://huggingface.co/docs/hub/repositories-licenses"
SPECIAL = frozenset({"code", "multilingual"})  # languages that are none


@cache
def _listed() -> dict[str, Any]:
    lists: dict[str, Any] = json.loads(
        resources.files("bot").joinpath("metadata/hub_lists.json").read_text(encoding="utf-8")
    )
    return lists


def licenses() -> dict[str, str]:
    """id → full name."""
    names: dict[str, str] = _listed()["licenses"]
    return names


@cache
def tasks() -> frozenset[str]:
    """What `pipeline_tag` may say."""
    return frozenset(_listed()["tasks"].split())


def language_names() -> dict[str, str]:
    """ISO 639-1 code → English name."""
    names: dict[str, str] = _listed()["languages"]
    return names


@cache
def languages() -> frozenset[str]:
    """What `language` may say: ISO 639-1, 639-2 and 639-3 codes, and the special values."""
    return frozenset({*language_names(), *_listed()["more_languages"].split(), *SPECIAL})
