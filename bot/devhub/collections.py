"""Collections: named lists of repos, in their owner's order."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass

from .database import Database, now
from .errors import HttpError


@dataclass(frozen=True, kw_only=True)
class RepoCollection:
    """`items`: (id, type of the item, its name), in order."""

    slug: str
    owner: str
    title: str
    private: bool
    items: tuple[tuple[str, str, str], ...]
    modified: str


def create(db: Database, *, owner: str, title: str, private: bool) -> RepoCollection:
    """A new, empty one. Its slug ends with an id, as on the Hub."""
    short = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    made = RepoCollection(
        slug=f"{owner}/{short}-{secrets.token_hex(12)}",
        owner=owner,
        title=title,
        private=private,
        items=(),
        modified=now(),
    )
    with db.write() as rows:
        rows.execute(
            "INSERT INTO collection VALUES (?, ?, ?, ?, ?, ?)", (made.slug, owner, title, private, "[]", made.modified)
        )
    return made


def get(db: Database, slug: str) -> RepoCollection:
    """One by its slug. Raises HttpError 404."""
    row = db.read.execute("SELECT * FROM collection WHERE slug = ?", (slug,)).fetchone()
    if row is None:
        raise HttpError(404, "Collection not found")
    items = tuple((str(id), str(kind), str(name)) for id, kind, name in json.loads(row["items"]))
    return RepoCollection(
        slug=row["slug"], owner=row["owner"], title=row["title"], private=bool(row["private"]), items=items, modified=row["modified"]
    )  # fmt: skip


def add(db: Database, slug: str, kind: str, name: str) -> RepoCollection:
    """An item at its end. Raises HttpError 409 for one that it has."""
    before = get(db, slug)
    if any(item[1:] == (kind, name) for item in before.items):
        raise HttpError(409, "Item already exists in this collection")
    items = [*before.items, (secrets.token_hex(12), kind, name)]
    with db.write() as rows:
        rows.execute("UPDATE collection SET items = ?, modified = ? WHERE slug = ?", (json.dumps(items), now(), slug))
    return get(db, slug)
