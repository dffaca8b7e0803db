"""Selection of the tokens that each step computes, by the time that steps take and the prompts that wait."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aiochatstream.engines.transformers.chunk import TOKEN_MULTIPLE, Chunk, padded_size, round_up
from aiochatstream.engines.transformers.request import Request

PREFILL_BUDGET = (8, 256)
"""Minimum and maximum number of prompt tokens per step. The maximum saturates a CPU: with more, the first requests in
the queue would only wait longer."""

QUICK_TOKENS = 32
"""Number of tokens of a step that takes little longer than one with fewer, because both read all weights."""

ACCELERATOR_FACTOR = 8
"""Factor of the maximum and of the quick tokens on devices other than a CPU."""

MAX_HALVINGS = 5
"""Halvings of the maximum: 256 tokens become 8."""

SLOW_STEP_SECONDS, SLOW_STEP_FACTOR = 3.0, 4.0
"""Limits of a step's duration, in seconds and in durations of a decode step. A step that exceeds both halves the prompt
tokens of the next ones, because a disconnect is noticed only between steps. A step below a third of the limit doubles
them again."""

SHORT_STEP_FACTOR = 1.75
"""Duration of a short step, in durations of a question's own step. On average, a question waits for half of it, so that
most have their first token within twice their own time. Shorter steps would delay documents by more than 30 %."""

CALM_TOKENS = 10_000
"""Number of prompt tokens without a question after which steps are no longer short: longer ones take less time per
token."""

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


class ShortSteps:
    """Steps that read a document while questions arrive beside it, and no request decodes.

    A question is a prompt that is read in one step before another one is finished.
    """

    def __init__(self) -> None:
        self._question_seconds = self._seconds_per_token = 0.0
        self._calm_tokens = 0

    @property
    def tokens(self) -> int:
        """Maximum number of tokens; unlimited if no question is expected."""
        if not (self._question_seconds and self._seconds_per_token) or self._calm_tokens >= CALM_TOKENS:
            return sys.maxsize
        tokens = int(SHORT_STEP_FACTOR * self._question_seconds / self._seconds_per_token)
        return max(tokens - tokens % TOKEN_MULTIPLE, QUICK_TOKENS)

    def record(self, tokens: int, seconds: float, *, question: bool) -> None:
        """Add the duration of a step in which prompts were read.

        :param question: whether one of them was a question.
        """
        if question:
            self._question_seconds, self._calm_tokens = seconds, 0
        elif tokens >= QUICK_TOKENS:
            self._seconds_per_token = seconds / tokens
            self._calm_tokens += tokens


class Scheduler:
    """Plans steps: the newest token of each decoding request, and chunks of prompts as time permits.

    The shortest prompts are read first, in steps that longer ones do not prolong, so that a question does not wait for
    a document. When they are a step ahead, it is the turn of the oldest prompt. It has half of the tokens, however many
    questions arrive: each prompt is read at the latest after twice the tokens that were before it.

    :param on_cpu: whether the model runs on a CPU.
    :param max_step: maximum seconds of a step with prompt tokens while other requests decode; None derives it from the
        duration of decode steps.
    """

    def __init__(self, *, on_cpu: bool, max_step: float | None) -> None:
        self._factor = 1 if on_cpu else ACCELERATOR_FACTOR
        self._max_step = max_step
        self._step_time = StepTimeModel()
        self._halvings = 0
        self._lead = 0
        """Number of tokens by which the other prompts are ahead of the oldest."""
        self._short_steps = ShortSteps()
        self._has_question = False
        """True if the step contains a whole prompt while another one is unfinished."""

    def plan(self, requests: Sequence[Request]) -> list[tuple[Request, Chunk]]:
        """Return the requests of the next step, each with its chunk: decoding requests in the order of their rows, then
        prompts.

        :param requests: in the order of their admission.
        """
        decoding = [request for request in requests if request.decoding]
        plan = [(request, Chunk(request.row, request.computed_tokens, request.ids[-1:])) for request in decoding]
        plan.sort(key=lambda planned: planned[1].row)
        prompts = [request for request in requests if request.remaining_tokens > 1]
        budget = self._prefill_budget(len(prompts), len(decoding))
        # a step that delays decoding requests is short already
        chunks = self._plan_prompts(prompts, budget, budget if decoding else QUICK_TOKENS * self._factor)
        whole = [chunk.start == request.cached_tokens and chunk.end == len(request.ids) for request, chunk in chunks]
        started = [request.computed_tokens > request.cached_tokens for request in prompts]
        self._has_question = any(whole) and any(started)
        return plan + chunks

    def _plan_prompts(self, prompts: Sequence[Request], budget: int, fill: int) -> list[tuple[Request, Chunk]]:
        """Return chunks of at most ``budget`` tokens: of the shortest prompts, or first of the oldest in its turn.

        :param fill: number of tokens up to which all prompts fill the step. Beyond it, a prompt is only added as a
            whole, and if it does not more than double the tokens.
        """
        oldest = prompts[0] if prompts else None
        first = oldest if self._lead >= budget else None
        plan = []
        tokens, scored_budget = 0, MAX_SCORED_TOKENS
        for request in sorted(prompts, key=lambda request: (request is not first, request.remaining_tokens)):
            start, remaining = request.computed_tokens, request.remaining_tokens
            scored = request.params.prompt_logprobs and not request.has_output
            count = min(remaining, budget - tokens, scored_budget if scored else budget)
            if tokens and (count < remaining or count > tokens):
                count = min(count, fill - tokens)
            if count >= min(remaining, PREFILL_BUDGET[0]):  # smaller chunks cost more time than they save
                plan.append((request, Chunk(request.row, start, request.ids[start : start + count], scored)))
                tokens += count
                scored_budget -= count if scored else 0
                self._lead += -count if request is oldest else count
        self._lead = max(self._lead, 0) if prompts else 0
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
        if only_prompts:
            self._short_steps.record(tokens, seconds, question=self._has_question)
        if not (only_prompts and self._step_time.calibrated):  # delays no decoding request, and is faster per token
            self._step_time.record(padded_size(tokens), seconds, prefill=prefill)

    def _prefill_budget(self, waiting: int, decoding: int) -> int:
        """Return the maximum number of prompt tokens in the next step.

        :param waiting: number of requests that wait for their first token.
        """
        minimum, maximum = PREFILL_BUDGET
        maximum = max(minimum, maximum * self._factor >> self._halvings)
        if not decoding or not waiting:
            return min(self._short_steps.tokens, maximum)
        decode_seconds = self._step_time.seconds(decoding)
        max_seconds = self._max_step or decode_seconds * (1 + MAX_SLOWDOWN * waiting)
        tokens = decoding + int(min(self._step_time.tokens(max_seconds - decode_seconds), maximum))
        tokens = max(tokens - tokens % TOKEN_MULTIPLE, round_up(decoding + minimum, TOKEN_MULTIPLE))
        return min(tokens - decoding, maximum)
