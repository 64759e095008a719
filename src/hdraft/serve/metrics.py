"""What Prometheus is told. Its own client writes the format, escapes it, and keeps the types straight."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hdraft.drafting import Source
from hdraft.serve.answering import Figures

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """Counters of one server.

    Args:
        held: how many requests run or wait.
        cache_bytes: what conversations hold between their turns.
        tenants: how many have a database of their own.
    """

    def __init__(self, held: Callable[[], int], cache_bytes: Callable[[], int], tenants: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"hdraft_{name}", text, labels, registry=self.registry)

        self.requests = counter("requests", "Requests, by route and status.", "route", "status")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.cached_tokens = counter("cached_prompt_tokens", "Tokens of prompts that a conversation's cache held.")
        self.tokens = counter("completion_tokens", "Tokens of answers.")
        self.steps = counter("steps", "Forward passes of the model, those over prompts included.")
        self.drafted = counter("drafted_tokens", "Draft tokens that were verified.")
        self.accepted = counter("accepted_tokens", "Draft tokens in answers, by source.", "source")
        self.model_seconds = counter("model_seconds", "Time in forward passes.")
        self.drafting_seconds = counter("drafting_seconds", "Time in drafting.")
        self.queued = Histogram(
            "hdraft_queue_seconds", "Time until a request's turn.", buckets=_SECONDS, registry=self.registry
        )
        self.seconds = Histogram(
            "hdraft_answer_seconds", "Time of an answer, from its turn on.", buckets=_SECONDS, registry=self.registry
        )
        for name, text, value in (
            ("held_requests", "Requests that run or wait.", held),
            ("cache_bytes", "Keys and values kept for conversations.", cache_bytes),
            ("tenants", "Tenants with a database of their own.", tenants),
        ):
            Gauge(f"hdraft_{name}", text, registry=self.registry).set_function(value)
        for source in Source:
            self.accepted.labels(source.name.lower())

    def add(self, figures: Figures) -> None:
        """Count an answer, whole or not."""
        statistics = figures.statistics
        self.prompt_tokens.inc(figures.prompt_tokens)
        self.cached_tokens.inc(figures.cached_tokens)
        self.tokens.inc(figures.completion_tokens)
        self.steps.inc(statistics.steps)
        self.drafted.inc(statistics.drafted)
        for source, count in statistics.accepted.items():
            self.accepted.labels(source.name.lower()).inc(count)
        self.model_seconds.inc(statistics.seconds_model)
        self.drafting_seconds.inc(statistics.seconds_drafting)
        self.queued.observe(figures.seconds_queued)
        self.seconds.observe(figures.seconds)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
