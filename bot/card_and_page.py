"""What people read of a proven merge: the card with its picture, results for the Hub's table, and the page."""

from __future__ import annotations

from pathlib import Path

from bot.adapters.combine import Predicted
from bot.adapters.combine.prediction import with_combined_adapter
from bot.card import render
from bot.evaluation import write_results
from bot.records import Plan, Report, Request, Sources
from bot.report_document import PAGE, PICTURE
from bot.report_page.writing import write_page
from bot.target import publish_target


def write_card_and_page(
    folder: Path, report: Report, sources: Sources, together: Predicted | None, request: Request, plan: Plan, hub: str
) -> None:
    """Write the card with its picture into the folder, and the page where it is wanted. `hub`: its address."""
    from bot.report_page.heat_map_png import heat_map_png  # pictures are not for those who only plan

    picture = heat_map_png(report.document)
    card = render(
        report.document,
        target=publish_target(request),
        base=sources.base,
        adapter=with_combined_adapter(sources, together).adapter,
        adapters=sources.adapters,
        license=request.license,
        assets=plan.assets,
        hub=hub,
        pictured=picture is not None,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    write_results(folder, report.document)
    if picture is not None:
        (folder / PICTURE).write_bytes(picture)
    if request.publish_report:
        write_page(folder / PAGE, report.document)
    if request.report is not None:
        write_page(request.report, report.document)
