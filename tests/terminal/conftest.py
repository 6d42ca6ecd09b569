"""A command of its own, as everywhere else."""

from __future__ import annotations

from tests.untrusted.conftest import _alone, start

__all__ = ["_alone", "start"]
