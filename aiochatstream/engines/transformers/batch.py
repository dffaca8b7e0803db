"""Continuous batching: one thread computes the next token of every row in one forward pass."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from aiochatstream.engines.base import StepKind
from aiochatstream.engines.transformers.answer_phase import AnswerPhase
from aiochatstream.engines.transformers.chunk import Chunk
from aiochatstream.engines.transformers.cpu.openmp import release_idle_threads
from aiochatstream.engines.transformers.device import device_tensor
from aiochatstream.engines.transformers.failed_rows import FailedRows, Plan
from aiochatstream.engines.transformers.grammars import Matcher
from aiochatstream.engines.transformers.kv_cache import KVCache
from aiochatstream.engines.transformers.logprobs import prompt_logprobs_of
from aiochatstream.engines.transformers.packed_step import PackedStep
from aiochatstream.engines.transformers.prefix_cache import SHARED, PrefixCache
from aiochatstream.engines.transformers.request import Request
from aiochatstream.engines.transformers.row_table import RowTable
from aiochatstream.engines.transformers.sampling import SampleFunction, sample
from aiochatstream.engines.transformers.scheduler import Scheduler
from aiochatstream.engines.transformers.step_errors import clear_frames, is_out_of_memory, is_usable
from aiochatstream.params import GenerationParams

logger = logging.getLogger(__name__)

Forward = Callable[[PackedStep], torch.Tensor]
"""Function that runs the model and returns the logits [tokens, vocabulary] at :attr:`PackedStep.output_positions`.

If it raises, the same tokens can be computed again: it may have written their keys and values, but nothing else."""

CLOSE_SECONDS = 5.0
"""Seconds that :meth:`Batch.close` waits for the running step. A step that is stuck is abandoned."""

MASK_WAIT_SECONDS = 0.1
"""Maximum duration of a step in which all answers wait for masks. Disconnects are noticed between steps."""

SWEEP_SECONDS = 60.0
"""Interval between two checks for expired prefixes while the batch is idle."""


class Batch:
    """Rows that decode together. Requests are admitted and retired at any step.

    :param forward: runs the model.
    :param max_step: maximum seconds of a step with prompt tokens; None for twice the duration of a step without, plus
        once more for each additional waiting prompt.
    :param sample_tokens: draws the next tokens.
    """

    def __init__(
        self,
        forward: Forward,
        kv_cache: KVCache,
        rows: int,
        prefix_cache: PrefixCache,
        device: torch.device,
        dtype: torch.dtype,
        on_step: Callable[[StepKind, float], None],
        max_step: float | None = None,
        sample_tokens: SampleFunction = sample,
    ) -> None:
        self.forward, self._on_step, self._sample = forward, on_step, sample_tokens
        self.kv_cache, self.prefix_cache = kv_cache, prefix_cache
        self._device, self._dtype = device, dtype
        self.rows = RowTable(kv_cache, prefix_cache, rows)
        self._scheduler = Scheduler(on_cpu=device.type == "cpu", max_step=max_step)
        self._arrivals: deque[Request] = deque()
        self._forgotten: set[str] = set()
        self._failed_rows = FailedRows()
        self._logged_error = ""
        self.wake = threading.Condition()
        """Condition that wakes the thread. No step starts while it is held."""
        self._has_news = False
        """True after a call that the thread has not processed yet."""
        self._closed = self.stopped = False
        self._thread = threading.Thread(target=self._run, name="aiochatstream-decode", daemon=True)
        self._thread.start()

    def metrics(self) -> dict[str, float]:
        """Return the current values for :meth:`Engine.metrics`."""
        free, unused = self.prefix_cache.pool.free, self.prefix_cache.unused
        used = self.kv_cache.blocks - free - unused
        return {
            "batch_size": len(self.rows.requests),
            "kv_cache_bytes": self.kv_cache.size,
            "kv_cache_used_tokens": used * self.kv_cache.block_size,
            "kv_cache_free_tokens": free * self.kv_cache.block_size,
            "state_cache_bytes": self.kv_cache.states.size,
            "prefix_cache_tokens": unused * self.kv_cache.block_size,
            "prefix_cache_bytes": unused * self.kv_cache.size // self.kv_cache.blocks,
            "prefix_cache_hits_total": self.rows.prefix_hits,
        }

    def submit(
        self,
        prompt: list[int],
        params: GenerationParams,
        matcher: Matcher | AnswerPhase | None = None,
        owner: str = "",
        shared_tokens: int = 0,
    ) -> Request:
        """Add a request, which is admitted at the next step with a free row. The caller reads its ``steps()``.

        :param owner: keys and values are reused only among prompts and answers of one owner.
        :param shared_tokens: number of tokens at the beginning of ``prompt`` that :meth:`share` may have computed.

        Raise ValueError if prompt and answer do not fit into a row.
        """
        if len(prompt) + params.max_new_tokens - 1 > self.kv_cache.length:  # the last token is never computed
            raise ValueError(
                f"{len(prompt)} tokens and max_new_tokens={params.max_new_tokens} "
                f"do not fit into the context of {self.kv_cache.length}."
            )
        request = Request(prompt, params, matcher, owner, shared_tokens)
        if matcher is not None:
            matcher.on_ready(self._notify)
        with self.wake:
            if self._closed:
                raise RuntimeError("The engine has stopped." if self.stopped else "The engine is closed.")
            self._arrivals.append(request)
            self._has_news = True
            self.wake.notify()
        return request

    def share(self, prefix: list[int]) -> None:
        """Compute ``prefix`` and cache it for the prompts of all owners, if it fits."""
        if self.prefix_cache.max_blocks and len(prefix) <= self.kv_cache.length:
            for _ in self.submit(prefix, GenerationParams(max_new_tokens=1, temperature=0.0), owner=SHARED).steps():
                pass

    def forget(self, owner: str) -> None:
        """Drop the cached prefixes of ``owner`` before any later prompt starts; do not cache running answers."""
        with self.wake:
            for request in [*self._arrivals]:  # a copy: the thread may admit requests during the loop
                request.cacheable = request.cacheable and request.owner != owner
            self._forgotten.add(owner)
            self._has_news = True
            self.wake.notify()

    def close(self) -> None:
        """End the thread. Running and waiting requests fail."""
        with self.wake:
            self._closed = self._has_news = True
            self.wake.notify()
        if threading.current_thread() is not self._thread:  # the garbage collector may call this in the thread itself
            self._thread.join(CLOSE_SECONDS)

    def _notify(self) -> None:
        with self.wake:
            self.wake.notify()

    def _run(self) -> None:
        reason = "The engine was closed."
        try:
            self._step_until_closed()
        except BaseException as error:  # for example SystemExit of a sampler
            logger.critical("The engine has stopped and cannot answer any more.", exc_info=True)
            clear_frames(error)
            reason = f"The engine has stopped: {error!r}"
            self.stopped = True
        with self.wake:
            self._closed = True
        for request in (*self.rows.clear(), *self._arrivals):
            request.fail(RuntimeError(reason))
        self._arrivals.clear()

    @torch.inference_mode()
    def _step_until_closed(self) -> None:
        while True:
            if not self.rows.requests:
                release_idle_threads()
            with self.wake:
                self.wake.wait_for(self._has_work, self._max_wait)
                self._has_news = False
                if self._closed:
                    return
                arrivals = len(self._arrivals)  # later ones may depend on a request that is not retired yet
                forgotten, self._forgotten = self._forgotten, set()
            try:
                self.rows.retire_finished()
                self.rows.forget(forgotten)
                self.prefix_cache.sweep()
                self._admit(arrivals)
                if self.rows.requests:
                    self._step()
            except Exception as error:
                if not is_usable(self._device):
                    raise
                logger.exception("A step failed")
                clear_frames(error)  # their local variables hold memory
                for request in self.rows.requests:
                    request.fail(RuntimeError(f"A step failed: {error!r}"))

    def _has_work(self) -> bool:
        can_admit = bool(self._arrivals) and not self.rows.requests
        return self._has_news or can_admit or not all(request.waits_for_mask for request in self.rows.requests)

    @property
    def _max_wait(self) -> float | None:
        """Seconds after which the thread continues without work; None for no limit."""
        if self.rows.requests:
            return MASK_WAIT_SECONDS
        return SWEEP_SECONDS if self.prefix_cache.unused else None

    def _admit(self, arrivals: int) -> None:
        """Admit the first ``arrivals`` waiting requests, in their order, as far as rows and blocks are free."""
        while arrivals and self.rows.free_rows:
            request = self._arrivals[0]
            try:
                if not request.cancelled and not self.rows.admit(request):
                    return
            except Exception as error:  # noqa: BLE001 - most likely out of memory
                request.fail(error)
            self._arrivals.popleft()
            arrivals -= 1

    def _step(self) -> None:
        """Compute the planned tokens, and sample the next tokens of all rows that are ready."""
        plan = self._scheduler.plan(self._failed_rows.next_group() or self.rows.requests)
        sampled = self._compute(plan) if plan else self._sample_ready([], torch.empty(0))
        for request in self.rows.requests:
            if request not in sampled:
                request.output.put(None)

    def _compute(self, plan: Plan) -> list[Request]:
        """Run a forward pass, and return the requests that have a new token."""
        chunks = [chunk for _, chunk in plan]
        start = time.perf_counter()
        try:
            logits = self.forward(PackedStep(self.kv_cache, chunks, self._device, self._dtype))
        except Exception as error:  # noqa: BLE001 - any row may have caused it
            self._handle_error(error, plan)
            return []
        sampled = self._complete(plan, logits)
        self._record_time(chunks, time.perf_counter() - start)
        return sampled

    def _handle_error(self, error: Exception, plan: Plan) -> None:
        """Let the next steps compute the tokens of a failed pass, except those of a row that has failed alone.

        Raise ``error`` if the device cannot compute any more.
        """
        clear_frames(error)  # their local variables hold memory
        for request, _ in plan if self.kv_cache.states else ():  # the pass may have changed their states
            request.computed_tokens = 0
        if is_out_of_memory(error):
            self._fail_newest(error, plan)
            return
        if not is_usable(self._device):
            raise error
        if repr(error) != self._logged_error:  # an error of a combination of rows recurs in each step
            logger.error("A step of %d rows failed; computing them in groups", len(plan), exc_info=error)
        self._logged_error = repr(error)
        culprit = self._failed_rows.add(plan)
        if culprit is not None:
            logger.error("A request fails, because its row cannot be computed: %r", error)
            culprit.fail(RuntimeError(f"A step failed: {error!r}"))

    def _complete(self, plan: Plan, logits: torch.Tensor) -> list[Request]:
        """Sample a token for each row whose ids are all computed, and return the requests of these rows."""
        for request, chunk in plan:
            request.computed_tokens = chunk.end
        self._add_prompt_logprobs(plan, logits)
        logits = logits[: len(plan)]
        complete = [at for at, (request, _) in enumerate(plan) if request.computed_tokens == len(request.ids)]
        requests = [plan[at][0] for at in complete]
        if 0 < len(complete) < len(plan):
            logits = logits[device_tensor(complete, self._device)]
        return self._sample_ready(requests, logits)

    def _record_time(self, chunks: Sequence[Chunk], seconds: float) -> None:
        self._on_step("prefill" if any(len(chunk.ids) > 1 for chunk in chunks) else "decode", seconds)
        self._scheduler.record_step_time(seconds, chunks)

    def _sample_ready(self, requests: Sequence[Request], logits: torch.Tensor) -> list[Request]:
        """Sample the next tokens of the rows whose masks are ready, and return their requests.

        The logits of other rows wait for a later step, so that a slow grammar delays only its own answer.

        :param requests: requests of the last pass, with their ``logits``.
        """
        late = [request for request in self.rows.requests if request.logits is not None and request.sampler.ready]
        parts = [request.logits for request in late if request.logits is not None]
        ready = [at for at, request in enumerate(requests) if request.sampler.ready]
        for at in set(range(len(requests))).difference(ready):
            requests[at].logits = logits[at : at + 1].clone()  # a compiled model reuses the memory of its results
        if ready:
            parts.append(logits if len(ready) == len(requests) else logits[device_tensor(ready, self._device)])
        for request in late:
            request.logits = None
        sampled = late + [requests[at] for at in ready]
        if sampled:
            self._add_tokens(sampled, torch.cat(parts) if late else parts[0])
        return sampled

    def _fail_newest(self, error: Exception, plan: Plan) -> None:
        """Fail the newest request of ``plan``."""
        size = len(plan)
        logger.warning("Out of memory in a step of %d rows; the newest request fails", size)
        newest = max((request for request, _ in plan), key=self.rows.requests.index)
        newest.fail(MemoryError(f"Out of memory in a step of {size} requests: {error}"))

    def _add_prompt_logprobs(self, plan: Plan, logits: torch.Tensor) -> None:
        """Add the logprobs of the tokens that follow each token of scored chunks. An error fails only its request."""
        start = len(plan)
        for at, (request, chunk) in enumerate(plan):
            if not chunk.scored:
                continue
            inner = slice(start, start + len(chunk.ids) - 1)
            start = inner.stop
            count = request.params.logprobs or 0
            try:
                for rows, position in ((logits[inner], chunk.start + 1), (logits[at : at + 1], chunk.end)):
                    tokens = request.ids[position : position + len(rows)]  # none after the prompt's last token
                    known = max(request.scored_tokens - position, 0)  # after a failed step
                    request.prompt_logprobs += prompt_logprobs_of(rows[known:], tokens[known:], count)
                    request.scored_tokens = max(request.scored_tokens, position + len(tokens))
            except Exception as error:  # noqa: BLE001 - out of memory or NaN
                request.fail(error)

    def _add_tokens(self, requests: Sequence[Request], logits: torch.Tensor) -> None:
        """Sample the next token of each request. A sampling error fails only its request."""
        try:
            samplers, seen = [request.sampler for request in requests], [request.ids for request in requests]
            tokens: list[Any] = self._sample(logits, samplers, seen)
        except Exception:  # noqa: BLE001 - any of the rows may have caused it
            tokens = [self._sample_one(request, logits[at : at + 1]) for at, request in enumerate(requests)]
        for request, token in zip(requests, tokens, strict=True):
            if isinstance(token, Exception):
                request.fail(token)
            else:
                if request.sampler.logprob is not None:
                    request.logprobs.append(request.sampler.logprob)
                request.ids.append(token)
                request.output.put(token)

    def _sample_one(self, request: Request, logits: torch.Tensor) -> int | Exception:
        try:
            return self._sample(logits, [request.sampler], [request.ids])[0]
        except Exception as error:  # noqa: BLE001
            return error
