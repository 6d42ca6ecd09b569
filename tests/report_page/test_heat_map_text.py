"""The heat map in letters, for pages that show no picture of ours."""

from __future__ import annotations

from typing import Any

from bot.report_document import Document
from bot.report_page.heat_map_text import heat_map_text


def row(layer: int | None, module: str, relative: float) -> dict[str, Any]:
    return {"layer": layer, "module": module, "tensors": 1, "relative": relative, "retention": 1.0}


def test_a_line_for_each_module_and_a_letter_for_each_layer():
    rows = [row(layer, "self_attn.q_proj", 0.01 * (layer + 1)) for layer in range(8)]
    rows += [row(0, "mlp.up_proj", 0.08), row(7, "mlp.up_proj", 0.001), row(None, "lm_head", 0.04)]
    lines = (heat_map_text(Document.of({"delta": rows})) or "").splitlines()
    assert "layers 0 to 7" in lines[0]
    shown = {line.split()[0]: line.split()[1] for line in lines[1:]}
    assert len(shown["self_attn.q_proj"]) == len(shown["mlp.up_proj"]) == 8
    assert shown["self_attn.q_proj"] == "".join(sorted(shown["self_attn.q_proj"]))
    assert shown["mlp.up_proj"].strip("·") == "█······▁"
    assert len(shown["lm_head"]) == 1


def test_without_rows_there_is_nothing_to_draw():
    assert heat_map_text(Document.of({})) is None


def test_a_module_of_a_strangers_name_is_one_line():
    text = heat_map_text(Document.of({"delta": [row(0, "a\n```\n# b", 0.1)]})) or ""
    assert len(text.splitlines()) == 2
