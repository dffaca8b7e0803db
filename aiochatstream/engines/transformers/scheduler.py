"""Selection of the tokens that each step computes, by the time that steps take."""

from __future__ import annotations

from collections.abc import Sequence

from aiochatstream.engines.transformers.chunk import TOKEN_MULTIPLE, Chunk, padded_size, round_up
from aiochatstream.engines.transformers.request import Request

PREFILL_BUDGET = (8, 256)
"""Minimum and maximum number of prompt tokens per step. The maximum saturates a CPU: with more, the first requests in
the queue would only wait longer."""

ACCELERATOR_FACTOR = 8
"""Factor of the maximum on devices other than a CPU."""

MAX_HALVINGS = 5
"""Halvings of the maximum: 256 tokens become 8."""

SLOW_STEP_SECONDS, SLOW_STEP_FACTOR = 3.0, 4.0
"""Limits of a step's duration, in seconds and in durations of a decode step. A step that exceeds both halves the prompt
tokens of the next ones, because a disconnect is noticed only between steps. A step below a third of the limit doubles
them again."""

MAX_SLOWDOWN = 1.0
"""Additional duration of a step with prompt tokens, in durations of a decode step, for each request that waits for its
first token. It keeps the gaps between tokens of other answers below three usual ones; bench/engine.py measures them."""

SMOOTHING = 0.3
"""Weight of the latest step in the moving averages."""

MIN_TOKEN_DIFFERENCE = 8
"""Minimum difference in tokens between steps from which the time per token is derived."""

MAX_SCORED_TOKENS = 256
"""Maximum number of prompt tokens per step whose logprobs are computed: their logits need memory."""


class StepTimeModel:
    """Linear model of step durations: a constant and a time per token.

    Fitted to moving averages of decode steps and of steps with prompt tokens.
    """

    def __init__(self) -> None:
        self._averages: dict[bool, tuple[float, float]] = {}
        self._seconds_per_token = 1e-9  # never 0, because it is a divisor

    @property
    def calibrated(self) -> bool:
        """True if both kinds of steps have been recorded."""
        return len(self._averages) == 2

    def record(self, tokens: int, seconds: float, *, prefill: bool) -> None:
        """Add the duration of a step.

        :param prefill: whether the step had prompt tokens.
        """
        mean_tokens, mean_seconds = self._averages.get(prefill, (tokens, seconds))
        self._averages[prefill] = (
            mean_tokens + (tokens - mean_tokens) * SMOOTHING,
            mean_seconds + (seconds - mean_seconds) * SMOOTHING,
        )
        if self.calibrated:
            (few, short), (many, long) = self._averages[False], self._averages[True]
            if many - few >= MIN_TOKEN_DIFFERENCE and long > short:
                self._seconds_per_token = (long - short) / (many - few)

    def seconds(self, tokens: int) -> float:
        """Return the expected duration of a step."""
        few, short = self._averages.get(False, (tokens, 0.0))
        return max(short + (tokens - few) * self._seconds_per_token, 0.0)

    def tokens(self, seconds: float) -> float:
        """Return the number of additional tokens that prolong a step by ``seconds``."""
        return seconds / self._seconds_per_token


class Scheduler:
    """Plans steps: the newest token of each decoding request, and chunks of prompts as time permits.

    :param on_cpu: whether the model runs on a CPU.
    :param max_step: maximum seconds of a step with prompt tokens while other requests decode; None derives it from the
        duration of decode steps.
    """

    def __init__(self, *, on_cpu: bool, max_step: float | None) -> None:
        self._on_cpu, self._max_step = on_cpu, max_step
        self._step_time = StepTimeModel()
        self._halvings = 0

    def plan(self, requests: Sequence[Request]) -> list[tuple[Request, Chunk]]:
        """Return the requests of the next step, each with its chunk: decoding requests in the order of their rows, then
        prompts in the order of ``requests``.
        """
        decoding = [request for request in requests if request.decoding]
        plan = [(request, Chunk(request.row, request.computed_tokens, request.ids[-1:])) for request in decoding]
        plan.sort(key=lambda planned: planned[1].row)
        budget, scored_budget = self._prefill_budget(len(requests), len(decoding)), MAX_SCORED_TOKENS
        for request in requests:
            scored = request.params.prompt_logprobs and not request.has_output
            start = request.computed_tokens
            remaining, room = len(request.ids) - start, min(budget, scored_budget) if scored else budget
            if remaining > 1 and room > 1:
                ids = request.ids[start : start + min(remaining, room)]
                budget -= len(ids)
                scored_budget -= len(ids) if scored else 0
                plan.append((request, Chunk(request.row, start, ids, scored)))
        return plan

    def record_step_time(self, seconds: float, chunks: Sequence[Chunk]) -> None:
        """Adapt to the duration of a step."""
        tokens = sum(len(chunk.ids) for chunk in chunks)
        prefill = tokens > len(chunks)
        limit = max(SLOW_STEP_SECONDS, SLOW_STEP_FACTOR * self._step_time.seconds(1))
        if prefill:
            change = (seconds > limit) - (seconds < limit / 3)
            self._halvings = min(max(self._halvings + change, 0), MAX_HALVINGS)
        only_prompts = all(len(chunk.ids) > 1 for chunk in chunks)
        if not (only_prompts and self._step_time.calibrated):  # delays no decoding request, and is faster per token
            self._step_time.record(padded_size(tokens), seconds, prefill=prefill)

    def _prefill_budget(self, rows: int, decoding: int) -> int:
        """Return the maximum number of prompt tokens in the next step."""
        minimum, maximum = PREFILL_BUDGET
        maximum = max(minimum, maximum * (1 if self._on_cpu else ACCELERATOR_FACTOR) >> self._halvings)
        waiting = rows - decoding
        if not decoding or not waiting:
            return maximum
        decode_seconds = self._step_time.seconds(decoding)
        max_seconds = self._max_step or decode_seconds * (1 + MAX_SLOWDOWN * waiting)
        tokens = decoding + int(min(self._step_time.tokens(max_seconds - decode_seconds), maximum))
        tokens = max(tokens - tokens % TOKEN_MULTIPLE, round_up(decoding + minimum, TOKEN_MULTIPLE))
        return min(tokens - decoding, maximum)
