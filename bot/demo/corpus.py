"""Text that ships with every CPython: the language reference behind help(), and the standard library's docstrings."""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from bot.errors import AdapterMergeError

# A paragraph of prose: starts like a sentence, ends like one, and holds no markup, doctest or table.
PROSE = re.compile(r"[A-Z\"'(][^|<>{}=\\]*\.")

# Little enough that a training of some seconds reads all of it eight times: read once, it teaches no sentence.
CORPUS_CHARS = 50_000


class NoSources(AdapterMergeError):
    """This Python came without the .py files of its standard library."""

    exit_code = 6

    def __init__(self, folder: Path) -> None:
        what = f"The demo's model learns from the standard library's source, and {folder} does not hold it."
        super().__init__(
            what, remedy="Run the demo with a CPython that ships it, as those of python.org and Debian do."
        )


def read_corpus(folder: Path | None = None, *, chars: int = CORPUS_CHARS) -> list[str]:
    """Paragraphs of plain prose, no two the same, about `chars` characters in all; the same for the same Python."""
    folder = folder or stdlib_folder()
    paragraphs: dict[str, None] = {}
    read = 0
    for text in _texts(folder):
        for paragraph in _prose(text):
            read += len(paragraph) if paragraph not in paragraphs else 0
            paragraphs[paragraph] = None
        if read >= chars:
            break
    if not paragraphs:
        raise NoSources(folder)
    return list(paragraphs)


def module_summary(module: str, folder: Path | None = None) -> str:
    """The first paragraph of a standard module's docstring, on one line: "zipfile" -> "Read and write ZIP files."."""
    folder = folder or stdlib_folder()
    for path in (folder / f"{module}.py", folder / module / "__init__.py"):
        if path.is_file():
            docstring = ast.get_docstring(_parse(path)) or ""
            return " ".join(docstring.split("\n\n")[0].split())
    raise NoSources(folder)


def license_text(folder: Path | None = None) -> str:
    """The licence Python came with: its LICENSE.txt, or a notice that points to it where a packager left it out."""
    for parent in (folder or stdlib_folder(), Path(sys.base_prefix)):
        if (parent / "LICENSE.txt").is_file():
            return (parent / "LICENSE.txt").read_text("utf-8")
    return f"{sys.copyright}\n\nPSF License Agreement: https://docs.python.org/3/license.html\n"


def stdlib_folder() -> Path:
    """Where this Python keeps the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def _texts(folder: Path) -> Iterator[str]:
    """Raw texts, the best teachers first: help topics, then docstrings of modules, classes and functions."""
    topics = folder / "pydoc_data" / "topics.py"
    # Debian's python3-minimal has no help topics; the docstrings then fill their place.
    if topics.is_file():
        yield from (
            n.value for n in ast.walk(_parse(topics)) if isinstance(n, ast.Constant) and isinstance(n.value, str)
        )
    paths = sorted([*folder.glob("[a-z]*.py"), *folder.glob("[a-z]*/__init__.py")])
    trees = [_parse(path) for path in paths if path.parent.name not in {"test", "idlelib", "lib2to3"}]
    for kinds in (ast.Module, ast.ClassDef, ast.FunctionDef):
        for tree in trees:
            yield from (ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds))


def _parse(path: Path) -> ast.Module:
    """Parsed, never imported: some standard modules print, open windows or the browser on import."""
    return ast.parse(path.read_text("utf-8"))


def _prose(text: str) -> list[str]:
    """A text's paragraphs of prose, each unwrapped onto one line."""
    paragraphs = (" ".join(p.replace("*", "").split()) for p in re.split(r"\n\s*\n", text))
    return [p for p in paragraphs if len(p) > 80 and PROSE.fullmatch(p) and _letters(p) > 0.88]


def _letters(text: str) -> float:
    """The share of letters and spaces in a text."""
    return sum(c.isalpha() or c.isspace() for c in text) / len(text)
