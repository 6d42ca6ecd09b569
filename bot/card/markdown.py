"""An input, named and linked in Markdown."""

from __future__ import annotations

from urllib.parse import quote

from bot.markdown import cell
from bot.records import Source

HUB = "https://huggingface.co"
SHOWN = 12  # digits of a sha that a reader needs


__all__ = ["HUB", "cell", "link", "pinned", "short_sha"]


def short_sha(sha: str) -> str:
    """The first digits of a commit sha or of `sha256:…`."""
    kind, colon, digits = sha.rpartition(":")
    return kind + colon + digits[:SHOWN]


def link(source: Source) -> str:
    """The source's repo, linked, or the folder of it that an adapter lies in; words for a local folder."""
    if source.subfolder:
        return f"[{cell(source.called)}]({_tree(source)})"
    return f"[{source.repo}]({HUB}/{source.repo})" if source.repo else f"a local {source.role}"


def pinned(source: Source) -> str:
    """The source at its commit, linked."""
    sha = short_sha(source.sha)
    if source.repo is None:
        return f"a local folder, `{sha}`"
    tag = f" ({cell(source.tags[0])})" if source.tags else ""
    return f"{link(source)} @ [`{sha}`]({_tree(source)}){tag}"


def _tree(source: Source) -> str:
    """The page of its files at its commit."""
    return "/".join(filter(None, (HUB, source.repo, "tree", source.sha, quote(source.subfolder or ""))))
