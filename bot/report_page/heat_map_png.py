"""The heat map as a PNG, for pages that show no SVG (a card on the Hub)."""

from __future__ import annotations

from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from bot.report_document import Document
from bot.report_page.heat_map import relative_map
from bot.report_page.layout import Picture, wide

SCALE = 2  # pixels of the file for each of the drawing
MARGIN = 12
BACK, TEXT, MUTED, LINE = "#ffffff", "#1f2328", "#59636e", "#d1d9e0"
FILLS = ("#eef4fb", "#d9e7f6", "#bdd6ee", "#98bfe2", "#3876b3", "#2862a0", "#174d88", "#08306b")  # as in colours.css
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def heat_map_png(document: Document) -> bytes | None:
    """Size of the delta by layer and module, dark on light; None where the report has no such rows."""
    heat_map = relative_map(document)
    return None if heat_map is None else _png(wide(heat_map))


def _png(picture: Picture) -> bytes:
    size = (round((picture.width + 2 * MARGIN) * SCALE), round((picture.height + 2 * MARGIN) * SCALE))
    image = Image.new("RGB", size, BACK)
    draw, small, font = ImageDraw.Draw(image), ImageFont.load_default(9 * SCALE), ImageFont.load_default(11 * SCALE)
    for cell in picture.cells:
        x, y = _at(cell.x, cell.y)
        right, bottom = _at(cell.x + cell.width * 0.96, cell.y + cell.height - 1)
        if cell.step is None:
            draw.rectangle((x, y, right, bottom), outline=LINE)
            continue
        draw.rectangle((x, y, right, bottom), fill=FILLS[cell.step])
        if cell.text:
            middle = _at(cell.x + cell.width * 0.48, cell.y + cell.height / 2 + 3)
            draw.text(middle, cell.text, fill=TEXT if cell.step < 4 else BACK, font=small, anchor="ms")
    for label in picture.labels:
        draw.text(_at(label.x, label.y), label.text, fill=MUTED, font=font, anchor=ANCHORS[label.anchor])
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _at(x: float, y: float) -> tuple[float, float]:
    return (x + MARGIN) * SCALE, (y + MARGIN) * SCALE
