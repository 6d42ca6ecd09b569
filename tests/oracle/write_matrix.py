"""Run the matrix and write docs/support-matrix.md: python -m tests.oracle.write_matrix"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

BEGIN = "## LoRA on every architecture"
DOCS = Path(__file__).parents[2] / "docs" / "support-matrix.md"
SHORT = {"streaming": "S", "phantom": "P", "in-memory": "M", "n/a": "–"}


class Cells:
    """Collects what every cell came to; works with xdist, whose reports come to the controller."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], str] = {}
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        identity = report.nodeid.partition("[")[2].removesuffix("]").encode().decode("unicode_escape")  # IA\xb3
        name, _, row = identity.partition("-|-")
        cell = dict(report.user_properties).get("cell", "failed")
        self.found[name, row] = "failed" if report.failed else str(cell)


def text(found: dict[tuple[str, str], str]) -> str:
    """The page."""
    from tests.oracle.test_every_method_on_every_architecture import COLUMNS, ROWS

    ran = sum(cell in ("streaming", "phantom", "in-memory") for cell in found.values())
    refused = sorted({cell.removeprefix("refused: ") for cell in found.values() if cell.startswith("refused")})
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("peft", "transformers", "torch"))
    lines = [
        "# Which method on which architecture",
        "",
        "<!-- Written by `python -m tests.oracle.write_matrix`. Do not edit. -->",
        "",
        "Every cell with a letter was run: a tiny float32 model, an adapter of random values made by PEFT, planned and",
        f"merged by adapter-merge, and its outputs held to PEFT's *unmerged* model in float64. {ran} cells ran, with",
        f"{versions}.",
        "",
        "**S** streaming engine, **P** phantom engine, **M** in-memory engine; **–** PEFT itself cannot put the method on"
        " that",
        "model's layers; **r** refused by name" + (f" ({', '.join(refused)})." if refused else "."),
        "",
        "| | " + " | ".join(COLUMNS) + " |",
        "| --- |" + " :-: |" * len(COLUMNS),
    ]
    for row in ROWS:
        cells = [found.get((name, row), "not run") for name in COLUMNS]
        lines.append(
            f"| {row} | " + " | ".join("r" if c.startswith("refused") else SHORT.get(c, c) for c in cells) + " |"
        )
    lines += [
        "",
        "LoRA alone was run with more settings: see `tests/oracle`.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the cells, write the page; the exit code is pytest's."""
    cells = Cells()
    given = [
        str(Path(__file__).with_name("test_every_method_on_every_architecture.py")),
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    code = pytest.main([*given, *sys.argv[1:]], plugins=[cells])
    _, begin, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)  # what write_architectures has written
    DOCS.write_text(text(cells.found) + (f"\n{begin}{rest}" if begin else ""), encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
