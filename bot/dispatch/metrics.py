"""The bot in numbers, for Prometheus: read from the store when they are asked for, so that they hold across restarts."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bot.dispatch.store import Store
from bot.dispatch.webhook_intake import Intake

CONTENT_TYPE = CONTENT_TYPE_LATEST
STATES = ("waiting", "sending", "sent", "done", "failed", "dropped")


class BotCollector(Collector):
    """`answers` counts since this server started; the rest is what the store holds."""

    def __init__(self, store: Store, intake: Intake) -> None:
        self._store, self._intake = store, intake

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        counts = self._store.counts()
        requests = GaugeMetricFamily("adapter_merge_requests", "Requests by state.", labels=["state"])
        for state in STATES:
            requests.add_metric([state], counts.get(state, 0))
        yield requests
        yield GaugeMetricFamily("adapter_merge_deliveries", "Deliveries remembered.", value=counts["deliveries"])
        answers = CounterMetricFamily("adapter_merge_answers", "Answers to deliveries by status.", labels=["status"])
        for status, number in sorted(self._intake.answers.items()):
            answers.add_metric([str(status)], number)
        yield answers
        due = self._store.next_due()
        late = max(0.0, self._store.clock() - due) if due is not None else 0.0
        yield GaugeMetricFamily(
            "adapter_merge_overdue_seconds", "How long the oldest due request has waited.", value=late
        )


def exposition(store: Store, intake: Intake) -> bytes:
    """All metrics in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(BotCollector(store, intake))
    return generate_latest(registry)
