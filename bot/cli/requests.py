"""From what was typed to records: references, the options, the request."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot.errors import Usage
from bot.options import Combination, Options, Ref, Request, options_of

if TYPE_CHECKING:
    from bot.hub import Hub


def the_hub() -> Hub:
    """The Hub that the environment names, connected to when it is first asked for something."""
    from bot.hub import lazy_hub

    def make() -> Hub:
        from bot.hub import Hub

        return Hub(read_token=os.environ.get("HF_READ_TOKEN") or None)

    return lazy_hub(make)


def model_ref(text: str) -> Ref:
    """A base or a merged model. Raises Usage."""
    from bot.pull import parse_ref

    return parse_ref(text)


def adapter_ref(text: str) -> Ref:
    """An adapter, which may lie in a folder of its repo. Raises Usage."""
    from bot.pull import parse_ref

    return parse_ref(text, deeper=True)


def request_of(adapters: tuple[str, ...], base: str | None, debug: bool, **typed: Any) -> Request:
    """What the options of a command ask for. Raises Usage."""
    adapter, *more = map(adapter_ref, adapters)
    return Request(
        adapter=adapter,
        more=tuple(more),
        combination=combination_of(typed),
        base=model_ref(base) if base else None,
        options=options_from(typed),
        **_typed_fields(Request, typed),
    )


def options_from(typed: dict[str, Any]) -> Options:
    """Those of Options that a command has. Raises Usage."""
    values = _typed_fields(Options, typed)
    if path := values.get("quantization"):
        values["quantization"] = _quantization(path, values["base_weights"])
    return Options(**values)


def _typed_fields(record: type, typed: dict[str, Any]) -> dict[str, Any]:
    """The record's fields among the options, save those that were left open."""
    return {each.field: typed[each.field] for each in options_of(record) if typed.get(each.field) is not None}


def _quantization(path: Path, base_weights: str) -> tuple[tuple[str, str | int | bool], ...]:
    """The fields of a BitsAndBytesConfig, for simulate-nf4. Raises Usage."""
    if base_weights != "simulate-nf4":
        raise Usage("--quantization-config says how simulate-nf4 quantises.", remedy="Add --base-weights simulate-nf4.")
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        document = None
    if not isinstance(document, dict):
        raise Usage(f"{path} is not a JSON object.", remedy="Write BitsAndBytesConfig's fields, as in a config.json.")
    # Lists of names (llm_int8_skip_modules) as one text: what decides the bytes must be hashable, and as JSON.
    plain = {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in document.items()}
    return tuple(sorted((name, value) for name, value in plain.items() if isinstance(value, str | int | bool)))


def combination_of(typed: dict[str, Any]) -> Combination | None:
    """What the options say of how adapters are combined; None where they say nothing. Raises Usage."""
    values = _typed_fields(Combination, typed)
    if weights := values.pop("weights", None):
        try:
            values["weights"] = tuple(float(weight) for weight in weights.split(","))
        except ValueError as error:
            raise Usage(
                f"The weights {weights!r} are not numbers.", remedy="Write them as --weights 0.7,-0.3."
            ) from error
    return Combination(**values) if values else None
