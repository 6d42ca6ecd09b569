"""A card or a comment as HTML. What a stranger wrote stays text: no HTML of theirs, no script, no address but of the web.

A comment of HTML is not shown, and `<details>` and `<summary>` are, which cards fold long tables with: bare, as they stand here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from html import escape
from typing import Any
from urllib.parse import quote

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

FOLDS = re.compile(r"</?(?:details|summary)>")
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|[/#]", re.IGNORECASE)


def as_html(text: str, files: str = "") -> str:
    """`files`: the address under which the repo's own files lie, for links and pictures that are relative."""
    tokens = _reader().parse(text)
    for token in tokens:
        for child in token.children or ():
            _lead(child, files)
    return str(_reader().renderer.render(tokens, _reader().options, {}))


def metadata_as_html(content: Mapping[str, Any]) -> str:
    """A card's metadata as a table; lists with commas, and what is nested as it is written."""
    rows = (f"<tr><td>{escape(str(key))}<td>{escape(_shown(value))}" for key, value in content.items())
    return f"<h2>Metadata</h2><table class=metadata>{''.join(rows)}</table>" if content else ""


def _shown(value: Any) -> str:
    plain = isinstance(value, list) and not any(isinstance(item, list | dict) for item in value)
    return ", ".join(map(str, value)) if plain else str(value)


@cache
def _reader() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    reader.inline.ruler.before("autolink", "comment", _skip_comment)
    reader.inline.ruler.before("autolink", "fold", _fold)
    return reader


def _skip_comment(state: StateInline, silent: bool) -> bool:
    end = state.src.find("-->", state.pos)
    if not state.src.startswith("<!--", state.pos) or end < 0:
        return False
    state.pos = end + 3
    return True


def _fold(state: StateInline, silent: bool) -> bool:
    marker = FOLDS.match(state.src, state.pos)
    if marker is None:
        return False
    if not silent:
        state.push("html_inline", "", 0).content = marker[0]
    state.pos = marker.end()
    return True


def _lead(token: Token, files: str) -> None:
    """A relative link or picture leads into the repo; one that leads elsewhere says nothing of where it comes from."""
    name = {"link_open": "href", "image": "src"}.get(token.type)
    if name is None:
        return
    target = str(token.attrGet(name) or "")
    if not ELSEWHERE.match(target):
        token.attrSet(name, f"{files}/{quote(target.removeprefix('./'), safe='/%#')}")
    if name == "href":
        token.attrSet("rel", "nofollow noreferrer")
