"""What the adapter claims, of a case; its readers, and torch with them, are imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.checks.case import Case

if TYPE_CHECKING:
    from bot.checks.expected.claims import Claims


def adapter_claims(case: Case) -> Claims:
    """What the adapter says should happen to which base key."""
    from bot.checks.expected.claims import read_claims

    return read_claims(case.subject, case.base, case.model.tensors.keys())
