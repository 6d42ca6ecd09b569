"""No function and no module grows longer than the longest one was."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "bot").rglob("*.py"))

# No rule, a ceiling: over about 250 lines a module wants to be two, over about 40 a function. They may shrink.
LONGEST_FUNCTION = 71
LONGEST_MODULE = 567


def test_no_function_and_no_module_is_longer_than_the_longest_was() -> None:
    functions = {
        f"{path.relative_to(ROOT).as_posix()}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    modules = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in MODULES}
    assert not {name: lines for name, lines in functions.items() if lines > LONGEST_FUNCTION}
    assert not {name: lines for name, lines in modules.items() if lines > LONGEST_MODULE}
