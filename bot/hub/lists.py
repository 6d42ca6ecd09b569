"""Lists of the Hub's: a collection's models, and the adapters of one author for one base."""

from __future__ import annotations

from itertools import islice

from bot.errors import NotFound
from bot.hub.connection import Connection
from bot.hub.errors import Unserved

MOST = 1000  # of one list; whoever asks takes fewer


class ListClient(Connection):
    """What may be merged by one word."""

    def collection(self, slug: str) -> tuple[str, ...]:
        """The models of a collection, in its order. `slug`: as in its address, owner/title-0123456789abcdef01234567."""
        where = self.where(f"read the collection {slug}")
        try:
            listed = self.patiently(where, lambda: self.inputs.get_collection(slug))
        except (NotFound, Unserved) as error:
            raise NotFound(
                f"There is no collection {slug} that this token sees.",
                remedy="Copy owner/slug from its address on the Hub, with the digits at its end.",
            ) from error
        return tuple(item.item_id for item in listed.items if item.item_type == "model")

    def adapters_for(self, base: str, author: str) -> tuple[str, ...]:
        """The author's adapters whose card names this base."""
        where = self.where(f"list the adapters of {author} for {base}")
        wanted = f"base_model:adapter:{base}"
        listed = self.patiently(
            where, lambda: list(islice(self.inputs.list_models(author=author, filter=wanted), MOST))
        )
        return tuple(sorted(model.id for model in listed))

    def is_adapter(self, repo: str) -> bool:
        """Whether a repo holds an adapter, at its root or in a folder, and is not itself what a merge made."""
        pinned = self.patiently(self.where(f"look at {repo}", repo), lambda: self.inputs.model_info(repo))
        names = {file.rfilename for file in pinned.siblings or ()}
        holds = any(name.rpartition("/")[2] == "adapter_config.json" for name in names)
        return holds and "verification.json" not in names
