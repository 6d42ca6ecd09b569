"""Text from elsewhere in Markdown: nothing in it is markup, wherever it is put."""

from __future__ import annotations

import re


def one_line(text: str) -> str:
    """The text without line ends, tabs and control characters: a value that cannot begin a line of its own."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def cell(text: str) -> str:
    """Plain text for a line or a table cell."""
    return re.sub(r"([\\`*\[\]|<>~])", r"\\\1", one_line(text))


def link(text: str, url: str) -> str:
    """A link with plain text; the text alone where the address is not a web page's, or could end the link."""
    fits = re.fullmatch(r"https?://[^\s()<>\\\[\]]+", url) is not None
    return f"[{cell(text)}]({url})" if fits else cell(text)


def unaddressed(text: str) -> str:
    """Plain text for a line that calls nobody: an @name in it is no mention."""
    return re.sub(r"(?<![\w/])@(?=\w)", "@\u200b", cell(text))


def code(text: str) -> str:
    """An inline code span that the text cannot end; a pipe in it would end a table's cell, so it is no text for those."""
    text = one_line(text)
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    return f"`{text}`" if not longest else f"{'`' * (longest + 1)} {text} {'`' * (longest + 1)}"


def fenced(text: str, language: str = "text") -> str:
    """Text of any kind as a block; the fence is longer than any inside."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
