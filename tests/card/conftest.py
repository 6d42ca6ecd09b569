"""A finished merge, and a local Hub that reads its card, as for a publication."""

from __future__ import annotations

from tests.publish.conftest import _alone, dev, document, folder, hub, owner

__all__ = ["_alone", "dev", "document", "folder", "hub", "owner"]
