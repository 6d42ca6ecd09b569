"""An input, named and linked in Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from bot.records import Source
from bot.report_document import short_sha
from bot.untrusted.markdown import cell

HUB = "https://huggingface.co"


__all__ = ["HUB", "Links", "cell"]


@dataclass(frozen=True)
class Links:
    """Links to inputs on one Hub. `hub`: its address."""

    hub: str = HUB

    def to(self, source: Source) -> str:
        """The source's repo, linked, or the folder of it that an adapter lies in; words for a local folder."""
        if source.subfolder:
            return f"[{cell(source.called)}]({self._tree(source, source.sha)})"
        return f"[{source.repo}]({self.hub}/{source.repo})" if source.repo else f"a local {source.role}"

    def pinned(self, source: Source) -> str:
        """The source at its commit, linked, with its tag where it has one."""
        sha = short_sha(source.sha)
        if source.repo is None:
            return f"a local folder, `{sha}`"
        tag = source.revision if source.revision in source.tags else next(iter(source.tags), None)
        named = f" ([{cell(tag)}]({self._tree(source, tag)}))" if tag else ""
        return f"{self.to(source)} @ [`{sha}`]({self._tree(source, source.sha)}){named}"

    def _tree(self, source: Source, revision: str) -> str:
        """The page of its files at a revision, which may be a tag with a slash or an @ in it."""
        parts = (self.hub, source.repo, "tree", quote(revision, safe=""), quote(source.subfolder or ""))
        return "/".join(filter(None, parts))
