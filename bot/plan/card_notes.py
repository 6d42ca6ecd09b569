"""What the result's card will not take over from the inputs' cards, or changes: noted in the plan, before any download."""

from __future__ import annotations

from dataclasses import replace

from bot.metadata import fields
from bot.metadata.license_fields import state
from bot.records import Plan, Source, Sources

TAKEN_OVER = (fields.languages, fields.datasets, fields.metrics, fields.tags, fields.task)


def with_notes_on_cards(plan: Plan, sources: Sources, license: str | None) -> Plan:
    """The plan with a note for each card that the Hub would not take as it is, and those about the license.

    `license`: what --license says. Raises Usage where it is none that the Hub knows.
    """
    notes = [note for adapter in sources.adapters for note in _of_adapter(adapter)]
    if not any(fields.languages(adapter.card, fields.Left()) for adapter in sources.adapters):
        notes += _of_base(sources.base)  # then its languages are carried
    licenses = state(sources.base, sources.adapters, license, assets=plan.assets)
    return replace(plan, notes=(*plan.notes, *notes, *licenses.notes))


def _of_adapter(adapter: Source) -> list[str]:
    left = fields.Left()
    for read in TAKEN_OVER:
        read(adapter.card, left)
    return left.sentences(adapter.called if adapter.repo else "the adapter")


def _of_base(base: Source) -> list[str]:
    left = fields.Left()
    fields.languages(base.card, left)
    return left.sentences(base.repo or "the base")
