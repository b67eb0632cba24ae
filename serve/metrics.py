"""What /metrics shows, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.answers import Answers
from serve.engine import Engine

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """Counters of one server."""

    def __init__(self, engine: Engine):
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("dllm_requests", "requests by path and status", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "dllm_request_seconds", "from arrival to the last token", ["path"], buckets=_SECONDS, registry=registry
        )
        self.first_seconds = Histogram(
            "dllm_first_text_seconds", "from arrival to the first text", buckets=_SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("dllm_prompt_tokens", "tokens of prompts", registry=registry)
        self.completion_tokens = Counter("dllm_completion_tokens", "tokens of answers", registry=registry)
        self.steps = Counter("dllm_denoising_steps", "steps of answers, each counted alone", registry=registry)
        self.cancelled = Counter("dllm_cancelled_requests", "requests whose client left", registry=registry)
        for name, text, value in (
            ("dllm_running", "answers that are being written", lambda: engine.running),
            ("dllm_waiting", "answers that wait for a slot", lambda: engine.waiting),
            ("dllm_ready", "1 once requests are answered", lambda: int(engine.ready)),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def count(self, answers: Answers) -> None:
        """Adds what a request took, complete or not."""
        self.prompt_tokens.inc(answers.prompt_tokens)
        self.completion_tokens.inc(answers.usage["completion_tokens"])
        self.steps.inc(sum(text.steps for text in answers.texts))
        if answers.first_text_seconds is not None:
            self.first_seconds.observe(answers.first_text_seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
