"""The versions that constraints.txt pins. The suite also runs with newer ones, where a table of the pinned one may not be whole."""

from __future__ import annotations

import re
from pathlib import Path

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"


def pinned(package: str) -> str:
    """The pinned version of a package."""
    found = re.search(rf"^{package}==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    assert found is not None, package
    return found[1]
