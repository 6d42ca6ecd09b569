"""The templates of this room, which escape all that they are given, and the heat map as a picture of its own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bot.report_document import Document
from bot.report_page.heat_map import relative_map
from bot.report_page.layout import wide
from bot.report_page.numbers import percent, short

TEMPLATES = Path(__file__).parents[1] / "templates" / "report"


@cache
def templates() -> Environment:
    """Everything that a template is given is text, never markup."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"px": pixels, "short": short, "percent": percent, "shown": shown}
    return environment


def pixels(value: float) -> str:
    """A length to a tenth of a pixel: `12`, `12.5`."""
    return f"{value:.1f}".removesuffix(".0")


def shown(value: float | None) -> str:
    """A number that a report has as null where it is NaN or infinite."""
    return "not finite" if value is None else short(value)


def heat_map_svg(document: Document) -> str | None:
    """Size of the delta by layer and module, light or dark as its reader has it; None where the report has no such rows."""
    heat_map = relative_map(document)
    return None if heat_map is None else templates().get_template("heat_map.svg").render(picture=wide(heat_map))
