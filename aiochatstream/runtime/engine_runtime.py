"""An engine with its threads, slots and queue: the part of a server that all answers share."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Executor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from aiochatstream.engines import AnswerStream, AsyncDeltaStream, AsyncEngine, DeltaStream, Engine, OnDelta, Prompt
from aiochatstream.engines.prefill_only import prefill_only
from aiochatstream.engines.replacements import apply_replacements
from aiochatstream.errors import (
    Draining,
    LoadFailed,
    Starting,
    TooManyRequests,
    Unavailable,
)
from aiochatstream.params import (
    GenerationParams,
)
from aiochatstream.prompts import AbstractChatPrompt
from aiochatstream.runtime.admission import MAX_SLOTS, Admission, Ticket
from aiochatstream.runtime.daemon_threads import DaemonExecutor, in_daemon_thread
from aiochatstream.runtime.events import Ended, Failed
from aiochatstream.runtime.metrics import Metrics
from aiochatstream.runtime.running_turn import ENDING_SECONDS, SAVE_SECONDS, Job, RunningTurn
from aiochatstream.runtime.served_model import MIN_FILL_TOKENS, RuntimeConfig, ServedModel
from aiochatstream.runtime.turns import Turns
from aiochatstream.texts import texts_for

if TYPE_CHECKING:
    from redis.asyncio import Redis

State = Literal["starting", "ready", "draining", "failed"]

Result = TypeVar("Result")

PROMPT_THREADS = 2
"""Threads for rendering and tokenising prompts."""

CONSTRAINT_THREADS = 1
"""Threads for checks that may take seconds (of unknown schemas), so that prompts do not wait for them."""

DEFAULT_SLOTS = 2
"""Number of concurrent answers if neither the application nor the engine limits it."""

MAX_THREADS = 1024
"""Maximum number of concurrent answers of an engine that needs a thread for each."""

MAX_SLOW_CHECKS = 32
"""Maximum number of running and waiting checks of this kind; further ones are refused with 503."""


class Runtime(ServedModel):
    """The engine, its threads, slots and queue, and the running turns.

    An ``async with`` loads the engine, and closes it at the end. It can be entered again.
    """

    def __init__(self, config: RuntimeConfig) -> None:
        super().__init__(config)
        self._texts = texts_for(config.locale)
        self.logger = config.logger
        self.capacity = config.capacity
        self.state: State = "starting"
        requested = self.capacity.num_of_concurrent_executions
        if isinstance(self.engine, Engine) and (requested or 0) > MAX_THREADS:
            raise ValueError(
                f"num_of_concurrent_executions: must be from 1 to {MAX_THREADS} with an engine that needs a thread for "
                f"each answer, not {requested}."
            )
        self._new_admission: Callable[[int, int], Admission] = Admission
        self.admission = Admission(self._slots(), self.capacity.max_queue_size)
        self._turns = Turns(self._turn_ended)
        self.slow_checks = 0
        """Number of requests whose constraint is being checked, or waits for its check."""
        self._loading: asyncio.Task[None] | None = None
        self.metrics = Metrics(
            running=lambda: self.admission.running,
            waiting=lambda: self.admission.waiting,
            waiting_for_memory=lambda: self.admission.waiting_for_memory,
            engine=lambda: self.engine.metrics(),
            labelled=lambda: self.engine.labelled_metrics(),
        )
        self.engine.on_step = self.metrics.step
        self._background: list[Callable[[], Coroutine[Any, Any, None]]] = [self.metrics.probe_lag]
        """Coroutine functions that run from start to end."""

    def share_queue(self, redis: Redis, name: str) -> None:
        """Share slots and queue with other servers, see
        :class:`~aiochatstream.runtime.redis_admission.RedisAdmission`. Call this before the start.

        :param redis: a client of redis-py.
        :param name: name of the queue, the same on all of these servers: 1 to 64 of A-Z a-z 0-9 - _ and dots.

        Raise ValueError for another name.
        """
        from aiochatstream.runtime.redis_admission import RedisAdmission  # which needs redis-py

        self._new_admission = functools.partial(RedisAdmission, redis, name)
        self.admission = self._new_admission(self._slots(), self.capacity.max_queue_size)

    @property
    def running_turns(self) -> list[RunningTurn]:
        """The turns of this process that wait or generate, of all users."""
        return list(self._turns)

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.shut_down()
        await self._end()

    async def _start(self) -> None:
        """Load the engine. Return when it is loaded, or immediately if it loads slowly."""
        # created here, after the fork of gunicorn, which threads would not survive
        slots = self._slots()
        self.state = "starting"
        self._stuck = 0
        self.admission = self._new_admission(slots, self.capacity.max_queue_size)
        if isinstance(self.engine, AsyncEngine):
            self.admission.share_load(self.engine.server_load)
            self.engine.other_load = self.admission.other_load
        await self.admission.open()
        self._threads = DaemonExecutor(slots, "aiochatstream-generate")
        self._prompt_threads = DaemonExecutor(PROMPT_THREADS, "aiochatstream-prompt")
        self._constraint_threads = DaemonExecutor(CONSTRAINT_THREADS, "aiochatstream-check")
        self._background_tasks = [asyncio.create_task(function()) for function in self._background]
        self._loading = asyncio.create_task(self._load())
        if self.engine.loads_slowly:
            self._loading.add_done_callback(self._log_failure)
            return
        try:
            await self._loading
        except BaseException:
            await self._end()  # __aexit__ is not called
            raise

    async def shut_down(self) -> None:
        """Refuse new turns, wait for running ones up to ``shutdown_timeout``, then stop them."""
        self.drain()
        if not await self._turns.wait(self.limits.shutdown_timeout):
            self.logger.warning(self._texts.stopping.format(count=len(self._turns)))
            self._turns.stop_all("shutdown")
            if not await self._turns.wait(ENDING_SECONDS):
                self._stuck = self._turns.abandon_all()
                if self._stuck:
                    self.logger.error(self._texts.stuck.format(count=self._stuck))
                await self._turns.wait(SAVE_SECONDS)  # until their text so far is saved

    async def _end(self) -> None:
        """Release the resources of :meth:`_start`, except the thread and the engine of a stuck turn."""
        await self.admission.close()
        for task in self._background_tasks:
            task.cancel()
        if self._loading is not None:
            self._loading.cancel()
        for threads in (self._prompt_threads, self._constraint_threads):
            threads.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=not self._stuck)
        if not self._stuck:
            if isinstance(self.engine, AsyncEngine):
                await self.engine.close()
            else:
                self.engine.close()

    def _slots(self) -> int:
        """Return the number of answers that may be generated concurrently now."""
        capacity = self.engine.capacity if isinstance(self.engine, AsyncEngine) else None
        limits = [limit for limit in (self.capacity.num_of_concurrent_executions, capacity) if limit is not None]
        return min(*limits, MAX_SLOTS) if limits else DEFAULT_SLOTS

    def _capacity_changed(self) -> None:
        self.admission.resize(self._slots())
        self._set_context_len()

    async def wait_ready(self) -> None:
        """Wait until the model is loaded. Raise the error of loading it."""
        if self._loading is None:
            raise RuntimeError("Call chat_stream.setup(app) and start the app first, or use `async with chat_stream`.")
        logged = self._loading.remove_done_callback(self._log_failure)  # raised here instead
        try:
            await asyncio.shield(self._loading)
        except asyncio.CancelledError:
            if logged:
                self._loading.add_done_callback(self._log_failure)
            raise

    @property
    def is_ready(self) -> bool:
        """True if the model is loaded and can answer."""
        return self.state == "ready" and self.engine.unavailable() is None

    def check_ready(self) -> None:
        """Raise :class:`~aiochatstream.errors.Starting`, :class:`~aiochatstream.errors.Draining` or the engine's error
        unless ready.
        """
        if self.state == "starting":
            raise Starting("The model is loading.", retry_after=5)
        if self.state == "failed":
            raise LoadFailed("The model could not be loaded; see the server's log.", retry_after=60)
        if self.state == "draining":
            raise Draining("The server is shutting down and accepts no new requests.", retry_after=5)
        if (error := self.engine.unavailable()) is not None:
            raise error

    def check_room(self) -> None:
        """Raise the errors of :meth:`check_ready` and :meth:`Admission.check_room`, before a body is read."""
        try:
            self.check_ready()
            self.admission.check_room()
        except Unavailable as error:
            self.metrics.refused(error.code)
            raise

    def drain(self) -> None:
        """Refuse new and waiting requests with 503 ``draining``. Running answers continue."""
        self.state = "draining"
        self.admission.drain()

    def _job(
        self,
        prompt: Prompt,
        params: GenerationParams,
        ticket: Ticket,
        replacements: list[tuple[str, str]],
        **fields: Any,
    ) -> Job:
        """Return the job of a turn.

        :param replacements: pairs of texts to replace in the answer.
        :param fields: further fields of the job, for a turn of a conversation.
        """
        prompt_tokens = len(prompt.token_ids)
        return self._ticket_job(
            ticket,
            functools.partial(self._generate, prompt, params, replacements),
            prompt_tokens=prompt_tokens,
            tokens_needed=functools.partial(self.engine.tokens_needed, prompt_tokens, params.max_new_tokens),
            **fields,
        )

    def _ticket_job(
        self, ticket: Ticket, generate: Callable[[OnDelta], AnswerStream], *, prompt_tokens: int = 0, **fields: Any
    ) -> Job:
        """Return the job of a turn that ``generate`` answers."""
        return Job(
            prompt_tokens=prompt_tokens,
            ticket=ticket,
            generate=generate,
            on_gap=self.metrics.gap,
            retry_after=self.admission.retry_after,
            max_queue_wait=self.limits.max_queue_wait,
            max_answer=self.limits.max_answer,
            **fields,
        )

    def _generate(
        self, prompt: Prompt, params: GenerationParams, replacements: list[tuple[str, str]], on_delta: OnDelta
    ) -> AnswerStream:
        """Start the generation of an answer."""
        if replacements:
            on_delta = apply_replacements(replacements, on_delta)
        if not params.max_new_tokens:
            on_delta = prefill_only(on_delta)
            params = params.model_copy(update={"max_new_tokens": 1})
        if isinstance(self.engine, AsyncEngine):
            return AsyncDeltaStream(functools.partial(self.engine.generate, prompt, params), on_delta)
        return DeltaStream(self._threads, functools.partial(self.engine.generate, prompt, params), on_delta)

    async def _prompt_of(self, chat_prompt: AbstractChatPrompt, params: GenerationParams) -> Prompt:
        """Return the result of :meth:`_make_prompt`, from a thread if it may block."""
        if isinstance(self.engine, AsyncEngine) and self.engine.tokenizer is None:
            return self._make_prompt(chat_prompt, params)
        return await self._run_in_prompt_thread(self._make_prompt, chat_prompt, params)

    async def _run_in_prompt_thread(self, function: Callable[..., Result], *args: Any) -> Result:
        return await self._run_in_thread(self._prompt_threads, function, *args)

    async def _check(self, params: GenerationParams) -> None:
        """Raise the error of the engine if it refuses ``params``. Called before a slot is reserved.

        Raise :class:`~aiochatstream.errors.TooManyRequests` if too many slow checks wait.
        """
        if self.engine.checks_quickly(params):
            await self._run_in_prompt_thread(self.engine.check, params)
            return
        if self.slow_checks >= MAX_SLOW_CHECKS:
            raise TooManyRequests(f"{MAX_SLOW_CHECKS} new schemas are being compiled. Try again later.")
        self.slow_checks += 1
        try:
            await self._run_in_thread(self._constraint_threads, self.engine.check, params)
        finally:
            self.slow_checks -= 1

    async def _run_in_thread(self, threads: Executor, function: Callable[..., Result], *args: Any) -> Result:
        def call() -> Result:
            try:
                return function(*args)
            except BaseException as error:  # other kinds would end the event loop
                if isinstance(error, Exception) and not isinstance(error, StopIteration | CancelledError):
                    raise
                raise RuntimeError(f"{error!r} in a prompt class") from error

        return await asyncio.get_running_loop().run_in_executor(threads, call)

    def _turn_ended(self, turn: RunningTurn, last: Ended | Failed) -> None:
        reason = last.finish_reason if isinstance(last, Ended) else last.error.code
        figures = {**turn.usage._asdict(), **turn.timing._asdict()}
        self.metrics.finished(reason, **figures)
        text = " ".join(f"{name}={value}" for name, value in figures.items())
        self.logger.info("answer %s finished_reason=%s %s", turn.message_id, reason, text)

    async def _load(self) -> None:
        try:
            if isinstance(self.engine, AsyncEngine):
                self.engine.on_capacity = self._capacity_changed
                await self.engine.load(self.capacity.num_of_concurrent_executions, self._requested_context_len)
                self._capacity_changed()
            await in_daemon_thread(self._load_model)
            self.admission.limit_tokens(self.engine.kv_cache_tokens)
        except BaseException:
            self.state = "failed"
            raise
        if self.state == "starting":
            self.state = "ready"

    def _load_model(self) -> None:
        """Load the engine unless it is asynchronous, and set the properties that depend on its model. Blocking."""
        if isinstance(self.engine, Engine):
            self.engine.load(self._slots(), self._requested_context_len)
        if self.engine.kv_cache_tokens is not None:
            self._fill_tokens = max(MIN_FILL_TOKENS, self.engine.kv_cache_tokens // self._slots())
        self._set_up_model()

    def _log_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.logger.error(self._texts.load_failed, exc_info=error)
