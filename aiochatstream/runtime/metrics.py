"""Prometheus metrics, named and measured like vLLM's.

========================================================== ============ ==============================================
aiochatstream_num_requests_running, _waiting               gauge        running answers, and length of the queue
aiochatstream_num_requests_waiting_for_memory              gauge        requests in the queue that have a slot
aiochatstream_requests_refused_total {reason}              counter      refused requests, by error code
aiochatstream_requests_finished_total {finished_reason}    counter      finish reason, or the error's code
aiochatstream_prompt_tokens_total, _cached_tokens_total    counter      prompt tokens, and those from a cache
aiochatstream_generation_tokens_total                      counter      tokens of answers
aiochatstream_thinking_tokens_total                        counter      tokens of thoughts, a part of the former
aiochatstream_request_queue_time_seconds                   histogram    acceptance to slot
aiochatstream_time_to_first_token_seconds                  histogram    acceptance to first text
aiochatstream_inter_token_latency_seconds                  histogram    time between pieces of text
aiochatstream_e2e_request_latency_seconds                  histogram    acceptance to end
aiochatstream_prefill_step_time_seconds                    histogram    forward passes that read a prompt
aiochatstream_decode_step_time_seconds                     histogram    forward passes that generate a token
aiochatstream_batch_size                                   gauge        rows that the engine decodes together
aiochatstream_kv_cache_bytes                               gauge        keys and values of all tokens
aiochatstream_kv_cache_used_tokens, _free_tokens           gauge        tokens of running answers, and of nobody
aiochatstream_prefix_cache_tokens, _bytes                  gauge        tokens of earlier prompts and answers
aiochatstream_state_cache_bytes                            gauge        states of rows and of earlier prompts
aiochatstream_prefix_cache_hits_total                      counter      answers with a prompt prefix from the cache
aiochatstream_sessions, _sessions_bytes                    gauge        conversations in memory, and their bytes
aiochatstream_event_loop_lag_seconds                       histogram    delay of timers of the event loop
aiochatstream_upstream_up, _running {server}               gauge        1 if it is up; its running answers
aiochatstream_upstream_failures_total {server}             counter      outages
aiochatstream_upstream_answers_total {server}              counter      answers with output
aiochatstream_upstream_first_output_seconds_total {server} counter      their seconds until the first output, in sum
========================================================== ============ ==============================================
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from aiochatstream.engines import StepKind
from aiochatstream.engines.base import LabelledMetric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LAG_PROBE_SECONDS = 0.25

SHORT = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0)
LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)


class Metrics:
    """Metrics of one ChatStream, in their own registry.

    :param running: returns the number of running answers.
    :param waiting: returns the length of the queue.
    :param waiting_for_memory: returns the number of requests in the queue that have a slot.
    :param engine: returns the current figures of the engine.
    :param labelled: returns those with labels.
    """

    def __init__(
        self,
        running: Callable[[], int],
        waiting: Callable[[], int],
        waiting_for_memory: Callable[[], int],
        engine: Callable[[], dict[str, float]],
        labelled: Callable[[], list[LabelledMetric]],
    ) -> None:
        self._registry = CollectorRegistry()
        self._gauge("num_requests_running", "Requests that run.", running)
        self._gauge("num_requests_waiting", "Requests that wait for a slot or for memory.", waiting)
        self._gauge("num_requests_waiting_for_memory", "Requests with a slot that wait for memory.", waiting_for_memory)
        self._refused = self._counter("requests_refused", "Requests refused before any work.", "reason")
        self._finished = self._counter("requests_finished", "Requests that were accepted and ended.", "finished_reason")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self._cached_tokens = self._counter("cached_tokens", "Tokens of prompts from a cache.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens of answers.")
        self._thinking_tokens = self._counter("thinking_tokens", "Tokens of answers that are thoughts.")
        self._queue_time = self._histogram("request_queue_time_seconds", "Time from acceptance to the slot.", LONG)
        self._ttft = self._histogram("time_to_first_token_seconds", "Time from acceptance to the first text.", LONG)
        self._registry.register(_Figures(engine, labelled))
        self._itl = _Gaps()
        self._registry.register(self._itl)
        self._e2e = self._histogram("e2e_request_latency_seconds", "Time from acceptance to the end.", LONG)
        self._steps = {
            "prefill": self._histogram("prefill_step_time_seconds", "Forward passes that read a prompt.", SHORT),
            "decode": self._histogram("decode_step_time_seconds", "Forward passes that generate a token.", SHORT),
        }
        self._lag = self._histogram("event_loop_lag_seconds", "Delay of timers of the event loop.", SHORT)

    def watch_sessions(self, count: Callable[[], int], size: Callable[[], int]) -> None:
        """Add metrics of the conversations in memory: their number, and their bytes."""
        self._gauge("sessions", "Conversations in the memory of this process.", count)
        self._gauge("sessions_bytes", "Bytes of these conversations.", size)

    def refused(self, code: str) -> None:
        """Count a refused request."""
        self._refused.labels(code).inc()

    def gap(self, seconds: float) -> None:
        """Observe the seconds between two pieces of text."""
        self._itl.observe(seconds)

    def step(self, kind: StepKind, seconds: float) -> None:
        """Observe a forward pass of the engine. Thread-safe."""
        self._steps[kind].observe(seconds)

    def finished(
        self,
        reason: str,
        *,
        prompt_tokens: int,
        cached_tokens: int,
        completion_tokens: int,
        thinking_tokens: int,
        queue_s: float,
        ttft_s: float | None,
        total_s: float,
    ) -> None:
        """Observe the end of an accepted request. Times in seconds since it was accepted."""
        self._finished.labels(reason).inc()
        self._prompt_tokens.inc(prompt_tokens)
        self._cached_tokens.inc(cached_tokens)
        self._generation_tokens.inc(completion_tokens)
        self._thinking_tokens.inc(thinking_tokens)
        self._queue_time.observe(queue_s)
        self._e2e.observe(total_s)
        if ttft_s is not None:
            self._ttft.observe(ttft_s)

    async def probe_lag(self) -> None:
        """Measure the event loop's lag until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            start = loop.time()
            await asyncio.sleep(LAG_PROBE_SECONDS)
            self._lag.observe(max(0.0, loop.time() - start - LAG_PROBE_SECONDS))

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, help_text: str, value: Callable[[], int]) -> None:
        Gauge(f"aiochatstream_{name}", help_text, registry=self._registry).set_function(value)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"aiochatstream_{name}", help_text, labels, registry=self._registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"aiochatstream_{name}", help_text, buckets=buckets, registry=self._registry)


class _Figures(Collector):
    """Figures of an engine."""

    def __init__(self, read: Callable[[], dict[str, float]], read_labelled: Callable[[], list[LabelledMetric]]) -> None:
        self._read, self._read_labelled = read, read_labelled

    def collect(self) -> Iterator[Metric]:
        unlabelled = [LabelledMetric(name, {}, value) for name, value in self._read().items()]
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for name, labels, value in [*unlabelled, *self._read_labelled()]:
            if name not in families:
                kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                families[name] = kind(f"aiochatstream_{name}", "Figure of the engine.", labels=[*labels])
            families[name].add_metric([*labels.values()], value)
        yield from families.values()


class _Gaps(Collector):
    """A histogram for the event loop's thread only. It costs a fifth of Histogram, and observes each piece of text."""

    def __init__(self) -> None:
        self._counts = [0] * (len(SHORT) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(SHORT, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        bounds = [*map(floatToGoString, SHORT), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        name = "aiochatstream_inter_token_latency_seconds"
        yield HistogramMetricFamily(name, "Gaps between pieces of text.", buckets, self._sum)
