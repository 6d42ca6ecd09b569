"""The page: a report as HTML, one file that loads nothing and runs nothing. All of it comes from verification.json alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from bot import verdict_text
from bot.report_document import Document
from bot.report_page import sections
from bot.report_page.charts import Chart, probe_chart, probed_of, prompt_chart, prompts_of
from bot.report_page.drawings import templates
from bot.report_page.facts import facts, title
from bot.report_page.heat_map import HeatMap, relative_map, retention_map
from bot.report_page.layout import NARROW, WIDE, Picture, narrow, wide
from bot.report_page.numbers import number, short
from bot.untrusted.redact import redact


class Pictures(NamedTuple):
    """The same for a wide screen and for a narrow one."""

    wide: Picture | Chart
    narrow: Picture | Chart


def render_page(document: Document) -> str:
    """The whole page. Names and texts in it may be anybody's: the templates escape them, and secrets are taken out."""
    document = _as_written(document)
    relative, floor = relative_map(document), document.noise_floor or {}
    prompts, probed = prompts_of(document.prompts), probed_of(document.probe)
    limit = number(floor.get("limit"))
    page = {
        "title": title(document),
        "verified": document.verdict == "verified",
        "sentence": verdict_text.sentence(document),
        "cause": sections.cause(document),
        "figures": [sections.tile(figure) for figure in verdict_text.figures(document)],
        "relative": _maps(relative),
        "retention": _maps(retention_map(document)),
        "left_out": relative.left_out if relative else 0,
        "delta": sections.delta(document),
        "prompts": prompts,
        "prompt_charts": _charts(lambda width: prompt_chart(prompts, width)),
        "metric": str(floor.get("metric") or "distance"),
        "k_limit": None if limit is None else short(limit),
        "probed": probed,
        "probe_charts": _charts(lambda width: probe_chart(probed, width)),
        "comparison": sections.comparison(document),
        "answers": sections.answers(document),
        "checks": sections.checks(document, idle=False),
        "idle": sections.checks(document, idle=True),
        "not_run": [(str(id), str(reason)) for id, reason in document.not_run],
        "facts": facts(document),
        "files": sorted((document.files or {}).items()),
        "absent": sections.absent(document),
    }
    return redact(templates().get_template("page.html").render(page=page))


def _as_written(document: Document) -> Document:
    """The report as its file has it, so that the page is the same before and after: numbers cut, names sorted."""
    try:
        return Document.of(json.loads(document.canonical()))
    except ValueError:  # somebody's, with NaN in it
        return document


def _maps(heat_map: HeatMap | None) -> Pictures | None:
    return None if heat_map is None else Pictures(wide(heat_map), narrow(heat_map))


def _charts(draw: Callable[[float], Chart]) -> Pictures:
    return Pictures(draw(WIDE), draw(NARROW))
