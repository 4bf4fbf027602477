"""Metrics of the server for Prometheus."""

import os
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from .pool import WorkPool

SECONDS = 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60
FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # folder in which the workers of a server share their metrics


class Metrics:
    """Metrics of one server. Outcomes of requests: done, left (the client disconnected), busy (the queue was full),
    refused (the text cannot be spoken), failed."""

    def __init__(self, pool: WorkPool, preparing: WorkPool):
        self.registry = CollectorRegistry()
        here: dict[str, Any] = {"registry": self.registry}
        sums: dict[str, Any] = {**here, "multiprocess_mode": "livesum"}
        self.requests = Counter("smalle_speeches_total", "Requests for speech.", ["outcome"], **here)
        self.audio = Counter("smalle_audio_seconds_total", "Seconds of generated speech.", **here)
        self.first = Histogram(
            "smalle_first_audio_seconds", "Time from a request to its first audio.", buckets=SECONDS, **here
        )
        self.running = Gauge("smalle_running", "Tasks that are running.", **sums)
        self.waiting = Gauge("smalle_waiting", "Requests in the queue.", **sums)
        self.preparing = Gauge(
            "smalle_preparing", "Recordings that are being made into voices, or are waiting for it.", **sums
        )
        pool.watch = self._count
        preparing.watch = lambda running, waiting: self.preparing.set(running + waiting)

    def _count(self, running: int, waiting: int):
        self.running.set(running)
        self.waiting.set(waiting)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        if FOLDER not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)
