"""Which adapters an owner has, for whoever looks at their tags."""

from __future__ import annotations

from itertools import islice

from bot.errors import Outside
from bot.hub.connection import Connection

ADAPTER = "adapter_config.json"
MOST = 10_000  # models of one owner that are looked through


class TagClient(Connection):
    """What is asked of an owner's models. The tags of one of them: `InputClient.tags_of`."""

    def adapters_of(self, owner: str) -> list[str]:
        """The owner's models that hold an adapter, in whatever folder, by name. Raises Outside where there are too many."""
        where = self.where(f"list the models of {owner}")

        def read() -> list[tuple[str, bool]]:
            # With `full`, every model comes with the names of its files.
            models = islice(self.inputs.list_models(author=owner, full=True), MOST + 1)
            return [(str(model.id), _holds_adapter(model.siblings)) for model in models]

        models = self.patiently(where, read)
        if len(models) > MOST:
            raise Outside(
                f"{owner} has more than {MOST} models.", remedy="Name the adapters themselves with --allow owner/name."
            )
        return sorted(name for name, holds_adapter in models if holds_adapter)


def _holds_adapter(siblings: object) -> bool:
    listed = siblings if isinstance(siblings, list) else []
    return any(str(file.rfilename).rpartition("/")[2] == ADAPTER for file in listed)
