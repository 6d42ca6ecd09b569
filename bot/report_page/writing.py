"""Puts the page where it was asked for."""

from __future__ import annotations

from pathlib import Path

from bot.errors import Usage
from bot.report_document import Document


def require_page_folder(page: Path | None) -> None:
    """Raise Usage where the page could not be written, before the work is done. None: no page was asked for."""
    if page is not None and not page.absolute().parent.is_dir():
        raise Usage(f"There is no folder for the report {page}.", remedy="Make it first, or name another file.")


def write_page(page: Path, document: Document) -> None:
    """Write the page of a report, whole or not at all."""
    from bot.report_page.page import render_page  # the templates are for those who want a page

    fresh = page.with_name(f".{page.name}.tmp")
    # Half of a surrogate pair, out of somebody's config, is text that no file can hold.
    fresh.write_text(render_page(document), encoding="utf-8", errors="backslashreplace")
    fresh.replace(page)
