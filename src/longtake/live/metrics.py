"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics(Collector):
    """The counters of one server, and gauges that are looked up when they are asked for.

    Args:
        gauges: gives, by name, what it is, the name of its label, and a value per value of the label.
    """

    def __init__(self, gauges: Callable[[], Mapping[str, tuple[str, str, Mapping[str, float]]]]) -> None:
        self._gauges = gauges
        self._registry = CollectorRegistry()
        make: dict[str, Any] = {"registry": self._registry}
        self.frames = Counter("longtake_frames", "Frames of video made.", **make)
        self.sent = Counter("longtake_frames_sent", "Frames sent to viewers.", **make)
        self.skipped = Counter("longtake_frames_skipped", "Frames left out for viewers who were too slow.", **make)
        self.failed = Counter("longtake_takes_failed", "Takes that ended with an error.", **make)
        self.refused = Counter("longtake_requests_refused", "Requests that were refused.", ["code"], **make)
        self.seconds = Histogram(
            "longtake_chunk_seconds", "Seconds to make a chunk, the file included.", buckets=_SECONDS, **make
        )
        self.latency = Histogram(
            "longtake_prompt_seconds", "Seconds from a prompt change to its first frame.", buckets=_SECONDS, **make
        )
        self._registry.register(self)

    def chunk(self, frames: int, seconds: float) -> None:
        """Takes note of a chunk."""
        self.frames.inc(frames)
        self.seconds.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """For Prometheus' registry."""
        for name, (what, label, values) in self._gauges().items():
            family = GaugeMetricFamily(f"longtake_{name}", what, labels=[label])
            for value, number in values.items():
                family.add_metric([value], number)
            yield family

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
