"""The heat map: a cell for each layer and module, as SVG and as PNG."""

from __future__ import annotations

from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from bot.report_document import Document
from bot.report_page import heat_map_png as png
from bot.report_page.drawings import TEMPLATES, heat_map_svg
from bot.report_page.heat_map import MOST_LAYERS, MOST_MODULES, STEPS, relative_map, retention_map
from bot.report_page.heat_map_png import heat_map_png
from bot.report_page.layout import NARROW, WIDE, narrow, wide

MODULES = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
EVIL = '</title><script>alert(1)</script>" onload="alert(2)'


def row(layer: Any, module: Any, relative: Any = 0.01, retention: Any = 0.99) -> dict[str, Any]:
    return {"layer": layer, "module": module, "tensors": 1, "relative": relative, "retention": retention}


def document(*rows: dict[str, Any]) -> Document:
    return Document.of({"delta": list(rows)})


FEW = document(*(row(layer, module, 0.001 * (1 + layer)) for layer in range(4) for module in MODULES))


def texts(svg: str) -> list[str]:
    return [
        element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith(("text", "title"))
    ]


def test_a_report_without_rows_has_no_picture() -> None:
    for empty in (document(), Document.of({}), document(row(0, "a", None, None)), document({"layer": 0})):
        assert relative_map(empty) is None
        assert heat_map_svg(empty) is None
        assert heat_map_png(empty) is None


def test_every_layer_and_module_has_a_cell_with_its_value() -> None:
    shown = texts(heat_map_svg(FEW) or "")
    for layer in range(4):
        for module in MODULES:
            assert f"layer {layer}, {module}: 0.{layer + 1}0 %" in shown
    assert [text for text in shown if text in MODULES] == MODULES
    assert ".10" in shown  # in the cell


def test_what_is_in_no_layer_stands_below() -> None:
    svg = heat_map_svg(document(row(0, "q", 0.01), row(None, "lm_head", 0.02)))
    assert "lm_head: 2.0 %" in texts(svg or "")
    assert "layer 0, q: 1.0 %" in texts(svg or "")
    assert "lm_head: 2.0 %" in texts(heat_map_svg(document(row(None, "lm_head", 0.02))) or "")


def test_a_layer_without_the_module_is_an_empty_cell() -> None:
    heat_map = relative_map(document(row(0, "q"), row(2, "q"), row(2, "k")))
    assert heat_map is not None
    assert heat_map.layers == [0, 1, 2]
    assert [cell.title for cell in wide(heat_map).cells if cell.step is None and cell.title] == [
        "layer 1, q: none",
        "layer 0, k: none",
        "layer 1, k: none",
    ]


def test_layers_far_apart_are_not_filled_up() -> None:
    heat_map = relative_map(document(row(0, "q"), row(1_000_000, "q")))
    assert heat_map is not None
    assert heat_map.layers == [0, 1_000_000]


def test_the_largest_is_the_darkest_and_zero_the_lightest() -> None:
    heat_map = relative_map(document(row(0, "q", 0.0), row(1, "q", 0.02), row(2, "q", 0.011)))
    assert heat_map is not None
    steps = [heat_map.scale.step(heat_map.values[layer, "q"]) for layer in range(3)]
    assert steps[0] == 0
    assert steps[1] == STEPS - 1
    assert 0 < steps[2] < STEPS - 1


def test_one_large_value_does_not_make_all_others_the_same() -> None:
    heat_map = relative_map(document(row(0, "q", 1.0), *(row(layer, "q", 0.0001 * 4**layer) for layer in range(1, 6))))
    assert heat_map is not None
    assert len({heat_map.scale.step(value) for value in heat_map.values.values()}) == 6


def test_retention_is_darker_the_further_it_is_from_one() -> None:
    heat_map = retention_map(
        document(row(0, "q", retention=1.0), row(1, "q", retention=0.93), row(2, "q", retention=2.0))
    )
    assert heat_map is not None
    assert [heat_map.scale.step(heat_map.values[layer, "q"]) for layer in range(3)] == [0, 4, STEPS - 1]


def test_what_strangers_wrote_is_text() -> None:
    svg = heat_map_svg(document(row(0, EVIL), row(None, EVIL))) or ""
    tree = ElementTree.fromstring(svg)
    assert not [element for element in tree.iter() if "script" in element.tag]
    assert not [name for element in tree.iter() for name in element.attrib if name.startswith("on")]
    assert f"layer 0, {EVIL}: 1.0 %" in texts(svg)


@pytest.mark.parametrize("bad", [
    row(0, "q", "0.5"), row(0, "q", True), row(0, 7), row("0", "q"), row(-1, "q"), row(1.5, "q"), row(0, "q", 10**400),
    row(0, "q", [1]), row({}, "q"), {},
])  # fmt: skip
def test_rows_that_are_none_are_passed_over(bad: dict[str, Any]) -> None:
    heat_map = relative_map(document(bad, row(3, "k")))
    assert heat_map is not None
    assert heat_map.values == {(3, "k"): 0.01}


def test_a_picture_ends_where_nobody_could_read_it() -> None:
    many = document(
        *(row(layer, f"m{module}") for layer in range(MOST_LAYERS + 9) for module in range(MOST_MODULES + 5))
    )
    heat_map = relative_map(many)
    assert heat_map is not None
    assert (len(heat_map.layers), len(heat_map.modules), heat_map.left_out) == (MOST_LAYERS, MOST_MODULES, 14)


@pytest.mark.parametrize("layers", [1, 2, 28, 126, 512])
def test_nothing_lies_outside_of_the_picture(layers: int) -> None:
    heat_map = relative_map(document(*(row(layer, "x" * 80 + module) for layer in range(layers) for module in MODULES)))
    assert heat_map is not None
    for picture, most in ((wide(heat_map), WIDE), (narrow(heat_map), NARROW)):
        assert picture.width <= most
        assert all(cell.x >= 0 and cell.x + cell.width <= picture.width + 0.01 for cell in picture.cells)
        assert all(cell.y >= 0 and cell.y + cell.height <= picture.height for cell in picture.cells)
        assert all(0 <= label.y <= picture.height for label in picture.labels)


def test_the_png_is_as_large_as_the_drawing_and_has_its_steps() -> None:
    heat_map = relative_map(FEW)
    assert heat_map is not None
    with Image.open(BytesIO(heat_map_png(FEW) or b"")) as image:
        assert image.format == "PNG"
        assert image.width == round((wide(heat_map).width + 2 * png.MARGIN) * png.SCALE)
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or ()}
    for fill in png.FILLS:  # the legend has all of them
        assert tuple(bytes.fromhex(fill[1:])) in colours


def test_png_and_svg_have_the_same_colours() -> None:
    styles = (TEMPLATES / "colours.css").read_text()
    for step, fill in enumerate(png.FILLS):
        assert f"--f{step}: {fill};" in styles.partition("@media")[0]
