"""Prometheus metrics: vLLM's names where the meaning is the same, with the prefix `lora_ensembles:`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ..catalogue import Catalogue
from ..completions.engines import CompletionEngines
from ..completions.job import Completion
from ..engine import Engine
from ..jobs import Answered, Job, Outcome

PREFIX = "lora_ensembles"
LAST = 1000  # answers that the running means are of
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60)
MODEL = "model_name"
QUESTIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 400)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, engine: Engine, completions: CompletionEngines, catalogue: Catalogue):
        self.registry = CollectorRegistry()
        self._recent = Recent(engine, completions, catalogue)
        self.registry.register(self._recent)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}:{name}", text, (MODEL, *labels), registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(f"{PREFIX}:{name}", text, (MODEL,), buckets=buckets, registry=self.registry)

        self._success = counter("request_success", "Requests that were answered.")
        self._failures = counter("request_failures", "Requests that got an error.", "status")
        self._rejections = counter("admission_rejections", "Requests that found the queue full.")
        self._questions = counter("questions", "Questions and texts that were answered.")
        self._tokens = counter("prompt_tokens", "Tokens of the prompts, each counted by itself.")
        self._written = counter("generation_tokens", "Tokens that were written.")
        self._first = histogram("time_to_first_token_seconds", "Time from a request to its first token.")
        self._queue = histogram("request_queue_time_seconds", "Time that a request waited.")
        self._inference = histogram("request_inference_time_seconds", "Time of the batch of a request.")
        self._whole = histogram("e2e_request_latency_seconds", "Time from reading a request to its answer.")
        self._sizes = histogram("request_questions", "Questions of a request.", QUESTIONS)

    def answered(self, job: Job, outcome: Outcome, seconds: float) -> None:
        """Count a request that was answered, `seconds` after it was read."""
        name = job.model.name
        self._success.labels(name).inc()
        self._questions.labels(name).inc(len(job.work))
        self._tokens.labels(name).inc(outcome.tokens)
        self._queue.labels(name).observe(max(0.0, outcome.waited))
        self._inference.labels(name).observe(outcome.computed)
        self._whole.labels(name).observe(seconds)
        self._sizes.labels(name).observe(len(job.work))
        for result in outcome.results:
            if isinstance(result, Answered):
                self._recent.add(name, result)

    def wrote(self, name: str, texts: Sequence[Completion], tokens: int, seconds: float) -> None:
        """Count a request for text that was answered, `seconds` after its prompts of so many tokens were
        read.
        """
        self._success.labels(name).inc()
        self._tokens.labels(name).inc(tokens)
        self._written.labels(name).inc(sum(len(text.tokens) for text in texts))
        self._first.labels(name).observe(max(0.0, min(text.waited for text in texts)))
        self._inference.labels(name).observe(max(text.computed for text in texts))
        self._whole.labels(name).observe(seconds)
        for text in texts:
            self._recent.add_text(name, [one.uncertainty["epistemic"] for one in text.tokens])

    def failed(self, name: str, status: int) -> None:
        """Count a request to a model that got an error."""
        self._failures.labels(name, str(status)).inc()
        if status == 429:
            self._rejections.labels(name).inc()

    def text(self) -> bytes:
        """The metrics as Prometheus reads them."""
        return generate_latest(self.registry)


class Recent(Collector):
    """Gauges, read when they are asked for: the queue, and means over the last answers of each model."""

    def __init__(self, engine: Engine, completions: CompletionEngines, catalogue: Catalogue):
        self._engines, self._catalogue = (engine, completions), catalogue
        self._of_tokens: dict[str, deque[float]] = {}
        self._epistemic: dict[str, deque[float]] = {}
        self._abstained: dict[str, deque[bool]] = {}

    def add(self, name: str, answer: Answered) -> None:
        """Take an answer into the means."""
        self._epistemic.setdefault(name, deque(maxlen=LAST)).append(answer.uncertainty["epistemic"])
        if answer.abstain is not None:
            self._abstained.setdefault(name, deque(maxlen=LAST)).append(answer.abstain)

    def add_text(self, name: str, epistemic: Sequence[float]) -> None:
        """Take the epistemic uncertainty of a text's tokens into the means."""
        self._of_tokens.setdefault(name, deque(maxlen=LAST)).append(sum(epistemic) / len(epistemic))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges as they stand."""
        running = _gauge("num_requests_running", "Requests that are computed now.")
        waiting = _gauge("num_requests_waiting", "Requests that wait.")
        for name in self._catalogue.names:
            running.add_metric([name], sum(engine.num_running(name) for engine in self._engines))
            waiting.add_metric([name], sum(engine.num_waiting(name) for engine in self._engines))
        epistemic = _gauge(
            "epistemic_uncertainty_mean", f"Mean epistemic uncertainty of the last {LAST} answers, in nats."
        )
        for name, values in self._epistemic.items():
            epistemic.add_metric([name], sum(values) / len(values))
        of_tokens = _gauge(
            "token_epistemic_uncertainty_mean",
            f"Mean epistemic uncertainty of the tokens of the last {LAST} texts, in nats.",
        )
        for name, means in self._of_tokens.items():
            of_tokens.add_metric([name], sum(means) / len(means))
        abstained = _gauge(
            "abstention_rate", f"Share of abstentions among the last {LAST} answers that had a risk."
        )
        for name, flags in self._abstained.items():
            abstained.add_metric([name], sum(flags) / len(flags))
        yield from (running, waiting, epistemic, of_tokens, abstained)


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}:{name}", text, labels=[MODEL])
