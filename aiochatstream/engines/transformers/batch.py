"""Continuous batching: one thread makes the next token of every row in one forward pass."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Any

import torch

from aiochatstream.engines.base import StepKind, TokenLogprob
from aiochatstream.engines.transformers.attention import ROUND_TOKENS, Piece, Step, filled_up, rounded
from aiochatstream.engines.transformers.cpu.openmp import release_helpers
from aiochatstream.engines.transformers.custom_sampler import Draw
from aiochatstream.engines.transformers.device import tensor
from aiochatstream.engines.transformers.grammars import Matcher
from aiochatstream.engines.transformers.kv_cache import SlotCache
from aiochatstream.engines.transformers.logprobs import logprobs_of, prompt_logprobs_of
from aiochatstream.engines.transformers.prefix_cache import HEAD, PrefixPool
from aiochatstream.engines.transformers.sampling import Sampler, sample
from aiochatstream.params import GenerationParams

logger = logging.getLogger(__name__)

Forward = Callable[[Step], torch.Tensor]
"""Runs the model over a step; returns the logits [tokens, vocabulary] at :attr:`Step.last`."""

PIECE_TOKENS = (8, 256)
"""The least and the most tokens of prompts that one step reads. The most keeps a CPU busy: with more, those who come
first would only wait longer."""

MOST_SHRUNK = 5
"""Halvings: of 256 tokens 8 are left."""

WIDER = 8
"""How many times as many another processor takes."""

LONGEST_STEP, SLOWEST = 3.0, 4.0
"""Seconds, and multiples of a step that reads no prompt: a step that takes longer than both halves what the next ones
read, because a client that leaves is noticed between steps. One that takes less than a third doubles that again."""

DISTURBED = 1.0
"""A step that also reads prompts may take so many times longer for each who waits for a first token. The gaps between
the others' tokens are to stay within three usual ones; bench/engine.py measures them."""

LEARNED = 0.3
"""How much the latest step counts in what is known of how long steps take."""


TELLING = 8
"""By how many tokens steps must differ to tell what a token takes."""

SCORED_TOKENS = 256
"""The most tokens of prompts whose logprobs one step finds: the logits of each take memory."""

CLOSE_SECONDS = 5.0
"""Time that a step may take to end when the batch is closed. One that is stuck is left alone."""

SWEEP_SECONDS = 60.0
"""Time between two looks at prefixes that were not used for long, while there is nothing to compute."""

SHORT = 256
"""Tokens. Rows with up to twice as many, four times as many and so on are alike."""


class Pace:
    """How long steps take: so much each, and so much for each token, learned from the latest of both kinds."""

    def __init__(self) -> None:
        self._known: dict[bool, tuple[float, float]] = {}
        self._per_token = 1e-9  # never 0, so that it can be divided by

    @property
    def known(self) -> bool:
        """Whether both kinds of steps were seen."""
        return len(self._known) == 2

    def learn(self, tokens: int, seconds: float, *, reading: bool) -> None:
        """A step took so long, which read a prompt or did not."""
        before_tokens, before_seconds = self._known.get(reading, (tokens, seconds))
        self._known[reading] = (
            before_tokens + (tokens - before_tokens) * LEARNED,
            before_seconds + (seconds - before_seconds) * LEARNED,
        )
        if self.known:
            (few, short), (many, long) = self._known[False], self._known[True]
            if many - few >= TELLING and long > short:
                self._per_token = (long - short) / (many - few)

    def seconds(self, tokens: int) -> float:
        """What a step of so many tokens is expected to take."""
        few, short = self._known.get(False, (tokens, 0.0))
        return max(short + (tokens - few) * self._per_token, 0.0)

    def tokens(self, seconds: float) -> float:
        """How many tokens more a step can have that takes so much longer."""
        return seconds / self._per_token


class Request:
    """One answer under way.

    ids: prompt and answer so far. computed: how many of them are in the cache, ``reused`` of these from before.
    size: a class of what it may grow to. owner: who alone may use what is kept of it. shared: the number of tokens at
    its beginning for which the pool's head may be used. kept: whether the pool keeps it in the end. logprobs: those of
    the tokens that were told, where they are asked for; who reads the tokens takes them. prompt_logprobs: those of the
    prompt's tokens but the first, likewise.
    """

    def __init__(
        self,
        prompt: list[int],
        params: GenerationParams,
        matcher: Matcher | None = None,
        owner: str = "",
        shared: int = 0,
    ) -> None:
        self.ids = list(prompt)
        self.owner, self.shared = owner, shared
        self.kept = True
        self.end = len(prompt) + params.max_new_tokens
        self.size = (self.end // SHORT).bit_length()
        self.sampler = Sampler(params, matcher)
        self.row = -1
        self.computed = self.reused = 0
        self.cancelled = self.failed = False
        self.told: SimpleQueue[int | Exception | None] = SimpleQueue()
        self.logprobs: deque[TokenLogprob] = deque()
        self.prompt_logprobs: deque[TokenLogprob] = deque()

    @property
    def began(self) -> bool:
        """Whether a token was drawn, and so all that was computed before it found to be numbers."""
        return len(self.ids) + self.sampler.params.max_new_tokens > self.end

    def steps(self) -> Generator[int | None, None, None]:
        """Yield the tokens as they come, max_new_tokens of them; None for a step without one. Closing it cancels.

        Raises what the request failed with.
        """
        try:
            for _ in range(self.sampler.params.max_new_tokens):
                while (step := self.told.get()) is None:
                    yield None
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            self.cancelled = True


class Batch:
    """Rows that decode together. Requests join and leave at any step.

    :param max_step: seconds that a step should take at most which also reads prompts; None is as long as one that
        does not, and as long again for each prompt.
    :param draw: how the next tokens are drawn.
    """

    def __init__(
        self,
        forward: Forward,
        cache: SlotCache,
        rows: int,
        pool: PrefixPool,
        device: torch.device,
        dtype: torch.dtype,
        on_step: Callable[[StepKind, float], None],
        max_step: float | None = None,
        draw: Draw = sample,
    ) -> None:
        self._forward, self._cache, self._pool, self._on_step = forward, cache, pool, on_step
        self._device, self._dtype, self._max_step, self._draw_tokens = device, dtype, max_step, draw
        self._free = list(range(rows))
        self._rows: list[Request] = []  # the oldest first
        self._arrivals: deque[Request] = deque()
        self._forgotten: set[str] = set()
        self._wake = threading.Condition()
        self._closed = self.stopped = False
        self._pace = Pace()
        self._shrunk = 0
        """Number of times that the largest piece is halved."""
        self._hits = 0
        self._thread = threading.Thread(target=self._run, name="aiochatstream-decode", daemon=True)
        self._thread.start()

    def figures(self) -> dict[str, float]:
        """What there is to tell of it, now."""
        return {
            "batch_size": len(self._rows),
            "kv_cache_bytes": self._cache.size,
            "prefix_cache_bytes": self._pool.size,
            "prefix_cache_hits_total": self._hits,
        }

    def answer(
        self,
        prompt: list[int],
        params: GenerationParams,
        matcher: Matcher | None = None,
        owner: str = "",
        shared: int = 0,
    ) -> Request:
        """Begin an answer, at the next step. Whoever asked reads its :meth:`Request.steps`.

        :param owner: with whose earlier prompts and answers alone this one may share what was computed.
        :param shared: the number of tokens at the beginning of ``prompt`` that :meth:`share` may have computed.

        Raises ValueError for what does not fit into a row.
        """
        if len(prompt) + params.max_new_tokens - 1 > self._cache.length:  # the last token is never read
            raise ValueError(
                f"{len(prompt)} tokens and max_new_tokens={params.max_new_tokens} "
                f"do not fit into the context of {self._cache.length}."
            )
        request = Request(prompt, params, matcher, owner, shared)
        with self._wake:
            if self._closed:
                raise RuntimeError("The engine has stopped." if self.stopped else "The engine is closed.")
            self._arrivals.append(request)
            self._wake.notify()
        return request

    def share(self, head: list[int]) -> None:
        """Compute ``head`` and keep it for all owners' prompts that begin with it, if there is room."""
        if len(head) <= min(self._pool.capacity, self._cache.length):
            for _ in self.answer(head, GenerationParams(max_new_tokens=1, temperature=0.0), owner=HEAD).steps():
                pass

    def forget(self, owner: str) -> None:
        """Drop what is kept for ``owner``, before any later prompt is looked up; keep nothing of running answers."""
        with self._wake:
            for request in self._arrivals:
                request.kept = request.kept and request.owner != owner
            self._forgotten.add(owner)
            self._wake.notify()

    def close(self) -> None:
        """End the thread; what is under way fails."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:  # where the garbage collector came to call this
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        reason = "The engine was closed."
        try:
            self._step_until_closed()
        except BaseException as error:  # SystemExit of a sampler, for example
            logger.critical("The engine has stopped; it makes no more answers.", exc_info=True)
            traceback.clear_frames(error.__traceback__)
            reason = f"The engine has stopped: {error!r}"
            self.stopped = True
        with self._wake:
            self._closed = True
        self._fail([*self._rows, *self._arrivals], RuntimeError(reason))
        self._rows, self._arrivals = [], deque()

    @torch.inference_mode()
    def _step_until_closed(self) -> None:
        while True:
            if not self._rows:
                release_helpers()
            with self._wake:
                self._wake.wait_for(
                    lambda: self._arrivals or self._rows or self._forgotten or self._closed,
                    SWEEP_SECONDS if len(self._pool) else None,
                )
                if self._closed:
                    return
                arrived = len(self._arrivals)  # later ones may come after an answer that has yet to leave
                forgotten, self._forgotten = self._forgotten, set()
            try:
                self._leave()
                self._drop(forgotten)
                self._join(arrived)
                if self._rows:
                    self._step()
            except Exception as error:
                logger.exception("A step failed")
                traceback.clear_frames(error.__traceback__)  # their variables take memory
                for request in self._rows:
                    self._fail([request], RuntimeError(f"A step failed: {error!r}"))

    def _leave(self) -> None:
        """Free the rows of those that are over, and keep what was computed for the next turn."""
        for request in [request for request in self._rows if request.cancelled or len(request.ids) == request.end]:
            self._rows.remove(request)
            self._free.append(request.row)
            done = request.ids[: request.computed]
            if request.failed or not request.began:  # a NaN would spread, even where it is masked
                self._cache.clear(request.row)
            elif done and request.kept:
                try:
                    self._pool.put(done, self._cache.row(request.row), request.owner, request.shared)
                except Exception:  # no memory, most likely
                    logger.warning("What was computed for an answer could not be kept", exc_info=True)

    def _drop(self, forgotten: set[str]) -> None:
        """Drop what is kept for these owners; what runs for them began before they were forgotten."""
        for owner in forgotten:
            self._pool.forget(owner)
        for request in self._rows:
            request.kept = request.kept and request.owner not in forgotten
        self._pool.sweep()

    def _join(self, arrived: int) -> None:
        """Give rows to the first ``arrived`` of those who wait, with what is known of their prompts."""
        self._free.sort(reverse=True)
        while arrived and self._free:
            arrived -= 1
            request = self._arrivals.popleft()
            if request.cancelled:
                continue
            request.row = self._free.pop()
            try:
                self._make_room(request)
                if not request.sampler.params.prompt_logprobs:  # else all of the prompt is computed, for its logits
                    self._recall(request)
            except Exception as error:  # noqa: BLE001 - no memory, most likely
                self._free.append(request.row)
                self._fail([request], error)
                continue
            self._rows.append(request)

    def _make_room(self, new: Request) -> None:
        """Move rows between a free one and where a request belongs, so that those of like lengths are neighbours.

        They attend together: as far as the longest of them. Rows are in the order of their sizes before and after; that
        someone leaves changes nothing of it.
        """
        while True:
            shorter = [one for one in self._rows if one.row > new.row and one.size < new.size]
            longer = [one for one in self._rows if one.row < new.row and one.size > new.size]
            if shorter:
                other = min(shorter, key=lambda one: (one.size, -one.row))
            elif longer:
                other = max(longer, key=lambda one: (one.size, -one.row))
            else:
                return
            self._cache.move(other.row, new.row, other.computed)
            other.row, new.row = new.row, other.row

    def _recall(self, request: Request) -> None:
        """Copy what is known of a request's prompt into its row."""
        known = request.ids[:-1]  # the last one is computed, for its logits
        prefix, same = self._pool.match(known, request.owner, request.shared)
        if prefix is not None:
            self._pool.read(prefix, same, self._cache.row(request.row))
            self._hits += 1
        request.computed = request.reused = same

    def _step(self) -> None:
        """Read the next tokens of all rows in one forward pass, and draw where a row has read all it has."""
        pieces = self._plan()
        requests = [request for request, _ in pieces]
        start = time.perf_counter()
        try:
            logits = self._forward(Step(self._cache, [piece for _, piece in pieces], self._device, self._dtype))
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
            if self._pool.reserved:
                logger.warning("Out of memory in a step of %d rows; what was kept is dropped", len(self._rows))
                self._pool.clear(self._pool.capacity // 2)  # and does not grow as large again
                return
            logger.warning("Out of memory in a step of %d rows; the newest request fails", len(self._rows))
            self._fail(self._rows[-1:], MemoryError(f"Out of memory in a step of {len(self._rows)} requests: {error}"))
            return
        for request, piece in pieces:
            request.computed = piece.end
        self._score(pieces, logits)
        logits = logits[: len(pieces)]
        complete = [at for at, request in enumerate(requests) if request.computed == len(request.ids)]
        answering = [requests[at] for at in complete]
        if answering:
            self._draw(answering, logits if len(complete) == len(pieces) else logits[tensor(complete, self._device)])
        for request in self._rows:
            if request not in answering:
                request.told.put(None)
        self._learn(time.perf_counter() - start, pieces)

    def _plan(self) -> list[tuple[Request, Piece]]:
        """What the next step reads: the newest token of each row that answers, and some of the prompts before it."""
        answering = [request for request in self._rows if len(request.ids) - request.computed == 1]
        pieces = [(one, Piece(one.row, one.computed, one.ids[-1:])) for one in answering]
        pieces.sort(key=lambda planned: planned[1].row)
        budget, to_score = self._budget(len(answering)), SCORED_TOKENS
        for request in self._rows:
            scored = request.sampler.params.prompt_logprobs
            left, room = len(request.ids) - request.computed, min(budget, to_score) if scored else budget
            if left > 1 and room > 1:
                piece = request.ids[request.computed : request.computed + min(left, room)]
                budget -= len(piece)
                to_score -= len(piece) if scored else 0
                pieces.append((request, Piece(request.row, request.computed, piece, scored)))
        return pieces

    def _budget(self, answering: int) -> int:
        """How many tokens of prompts the next step may read."""
        least, most = PIECE_TOKENS
        most = max(least, most * (1 if self._device.type == "cpu" else WIDER) >> self._shrunk)
        waiting = len(self._rows) - answering
        if not answering or not waiting:
            return most
        undisturbed = self._pace.seconds(answering)
        longest = self._max_step or undisturbed * (1 + DISTURBED * waiting)
        tokens = answering + int(min(self._pace.tokens(longest - undisturbed), most))
        tokens = max(tokens - tokens % ROUND_TOKENS, rounded(answering + least, ROUND_TOKENS))
        return min(tokens - answering, most)

    def _learn(self, seconds: float, pieces: list[tuple[Request, Piece]]) -> None:
        tokens = sum(len(piece.ids) for _, piece in pieces)
        computed = filled_up(tokens)
        self._on_step("prefill" if tokens > len(pieces) else "decode", seconds)
        limit = max(LONGEST_STEP, SLOWEST * self._pace.seconds(1))
        if tokens > len(pieces):
            slower = (seconds > limit) - (seconds < limit / 3)
            self._shrunk = min(max(self._shrunk + slower, 0), MOST_SHRUNK)
        alone = all(len(piece.ids) > 1 for _, piece in pieces)
        if not (alone and self._pace.known):  # nobody waits for such a step, and its tokens take less time each
            self._pace.learn(computed, seconds, reading=tokens > len(pieces))

    def _score(self, pieces: list[tuple[Request, Piece]], logits: torch.Tensor) -> None:
        """Find the logprobs of the tokens that follow those of scored pieces. A request that fails fails alone."""
        begin = len(pieces)
        for at, (request, piece) in enumerate(pieces):
            if not piece.scored:
                continue
            inner = slice(begin, begin + len(piece.ids) - 1)
            begin = inner.stop
            count = request.sampler.params.logprobs or 0
            try:
                for rows, start in ((logits[inner], piece.start + 1), (logits[at : at + 1], piece.end)):
                    tokens = request.ids[start : start + len(rows)]  # none after the prompt's last one
                    request.prompt_logprobs += prompt_logprobs_of(rows, tokens, count)
            except Exception as error:  # noqa: BLE001 - no memory, or no numbers
                self._fail([request], error)

    def _draw(self, requests: list[Request], logits: torch.Tensor) -> None:
        """Draw the next token of each, and hand it over. A row that cannot be drawn fails alone."""
        try:
            samplers, seen = [one.sampler for one in requests], [one.ids for one in requests]
            drawn: list[Any] = self._draw_tokens(logits, samplers, seen)
        except Exception:  # noqa: BLE001 - whichever row it was
            drawn = [self._draw_alone(one, logits[at : at + 1]) for at, one in enumerate(requests)]
        self._find_logprobs(requests, logits, drawn)
        for request, token in zip(requests, drawn, strict=True):
            if isinstance(token, Exception):
                self._fail([request], token)
            else:
                request.ids.append(token)
                request.told.put(token)

    def _draw_alone(self, request: Request, logits: torch.Tensor) -> int | Exception:
        try:
            return self._draw_tokens(logits, [request.sampler], [request.ids])[0]
        except Exception as error:  # noqa: BLE001
            return error

    def _find_logprobs(self, requests: list[Request], logits: torch.Tensor, drawn: list[Any]) -> None:
        """Add them to the requests that ask for them. Where that fails, their tokens become the exception."""
        asking = [
            at
            for at, (one, token) in enumerate(zip(requests, drawn, strict=True))
            if one.sampler.params.logprobs is not None and not isinstance(token, Exception)
        ]
        if not asking:
            return
        counts = [requests[at].sampler.params.logprobs or 0 for at in asking]
        try:
            found = logprobs_of(logits[tensor(asking, self._device)], [drawn[at] for at in asking], counts)
        except Exception as error:  # noqa: BLE001 - no memory, most likely
            for at in asking:
                drawn[at] = error
        else:
            for at, logprob in zip(asking, found, strict=True):
                requests[at].logprobs.append(logprob)

    def _fail(self, requests: list[Request], error: Exception) -> None:
        for request in requests:
            request.cancelled = request.failed = True
            request.told.put(error)


def _is_out_of_memory(error: Exception) -> bool:
    """On a CPU, torch has no class for it."""
    said = ("can't allocate memory", "aoti_torch_empty")  # torch, and what it has compiled
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)
