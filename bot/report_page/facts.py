"""What was merged, how, and with which versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bot import verdict_text
from bot.options import Options, options_of
from bot.report_document import Document, Pin

LONGEST = 600  # letters of a value


def title(document: Document) -> str:
    """`alice/lora merged into bob/base`."""
    names = [pin.name("an adapter in a folder") for pin in document.inputs.adapters]
    return f"{' and '.join(names)} merged into {document.inputs.base.name('a base in a folder')}"


def facts(document: Document) -> list[tuple[str, str]]:
    """(name, value) of all that the report says of where the merge comes from."""
    return [(name, text[:LONGEST]) for name, value in _facts(document) if (text := _text(value))]


def _facts(document: Document) -> Iterator[tuple[str, Any]]:
    inputs, merge, versions = document.inputs, document.merge, document.environment
    yield "base", _pin(inputs.base)
    for number, adapter in enumerate(inputs.adapters, 1):
        yield "adapter" if len(inputs.adapters) == 1 else f"adapter {number}", _pin(adapter)
    yield "combined", inputs.combination
    yield "method", merge.method
    yield "ranks", merge.ranks
    yield "scalings", merge.scalings
    yield "merged into", merge.base_weights
    yield "stored as", " ".join(filter(None, (str(merge.dtype or ""), "" if merge.form == "none" else merge.form)))
    yield "tensors", merge.tensors
    yield "options", _options(document)
    yield "engine", merge.json.get("engine")
    yield "recipe", inputs.recipe
    yield "fingerprint", merge.fingerprint
    yield "target", merge.target
    yield "tag", merge.tag
    yield "proven at level", verdict_text.level(document)
    yield "versions", {name: version for name, version in versions.items() if version}


def _pin(pin: Pin) -> str:
    revision = f" ({pin.revision})" if pin.revision else ""
    return f"{pin.name('a folder')} @ {pin.sha or '?'}{revision}" if pin.sha or pin.repo else ""


def _options(document: Document) -> dict[str, Any]:
    """Those that differ from their defaults."""
    defaults = {each.field: each.default for each in options_of(Options) if each.decides}
    given = document.merge.options or {}
    return {name: value for name, value in given.items() if value and value != defaults.get(name)}


def _text(value: Any) -> str:
    if value is None or value in ({}, [], ()):
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_inner(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_inner, value))
    return _inner(value)


def _inner(value: Any) -> str:
    """A value in a list: as JSON, where it is one of more values itself."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
