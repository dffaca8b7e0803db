"""What all answers need, whoever they are for: an engine with its threads, slots and queue. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import random
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Executor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from aiochatstream.conversations.conversation import Conversation, Turn
from aiochatstream.engines import DeltaStream, Engine, Prompt
from aiochatstream.engines.prefill_only import prefill_only
from aiochatstream.engines.replacements import apply_replacements
from aiochatstream.errors import (
    Draining,
    EngineStopped,
    InvalidValue,
    LoadFailed,
    Starting,
    TooManyRequests,
    Unavailable,
)
from aiochatstream.params import Capacity, GenerationParams, Limits, ParamLimits, ParamOverrides
from aiochatstream.prompts import AbstractChatPrompt, ChatPrompt, fit
from aiochatstream.runtime.admission import Admission, Ticket
from aiochatstream.runtime.daemon_threads import DaemonExecutor, in_daemon_thread
from aiochatstream.runtime.events import Ended, Failed
from aiochatstream.runtime.metrics import Metrics
from aiochatstream.runtime.turns import ENDING_SECONDS, SAVE_SECONDS, Job, RunningTurn, Turns
from aiochatstream.texts import Locale, texts_for

State = Literal["starting", "ready", "draining", "failed"]

Result = TypeVar("Result")

DEFAULT_CONTEXT_LEN = 2048

PROBE = "Hello"
PROBE_CONVERSATION = Conversation((Turn("1", "1", ""),))
"""The message of a trial at load, alone and after another one: what both prompts begin with is the server's own."""

PROMPT_THREADS = 2
"""Threads for the short jobs of rendering and tokenising prompts."""

CONSTRAINT_THREADS = 1
"""Threads for checks that may take seconds (unknown schemas), so that no prompt waits for one."""

MAX_SLOW_CHECKS = 32
"""Number of these checks that run or wait; further ones are refused with 503."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """What a :class:`Runtime` is made of.

    engine: what answers.
    prompt_class_of: given the tokenizer (None with an engine that has none), the class that writes the prompt.
    params: those of every answer, where a request says nothing else.
    capacity: number of concurrent answers and waiting requests.
    limits: limits of time and size.
    param_limits: ranges that requests may set.
    seed: seeds the sequence of the answers' seeds; None is random.
    locale: what the log's lines for people are written in.
    logger: for the lines on loading, answers and shutdown.
    """

    engine: Engine
    prompt_class_of: Callable[[Any], type[AbstractChatPrompt]]
    params: GenerationParams
    capacity: Capacity
    limits: Limits
    param_limits: ParamLimits
    seed: int | None
    locale: Locale
    logger: logging.Logger


class Runtime:
    """Owns the engine, its threads, slots and queue, and the turns under way.

    Lives inside an ``async with``, which loads the engine; it can be entered again after it was left.
    """

    def __init__(self, setting: RuntimeConfig) -> None:
        self._texts = texts_for(setting.locale)
        self.logger = setting.logger
        self.engine, self.params = setting.engine, setting.params
        self.capacity, self.limits, self.param_limits = setting.capacity, setting.limits, setting.param_limits
        self.context_len = self.limits.context_len or DEFAULT_CONTEXT_LEN
        self.state: State = "starting"
        self.admission = Admission(self.capacity.num_of_concurrent_executions, self.capacity.max_queue_size)
        self._prompt_class_of = setting.prompt_class_of
        self._prompt_class: type[AbstractChatPrompt] = ChatPrompt
        """Known when the engine is loaded."""
        self._head: list[int] = []
        """Tokens that the server itself puts before every conversation; known when the engine is loaded."""
        self._seeds = random.Random(setting.seed)  # noqa: S311 - the draws of a language model need no secrecy
        self._turns = Turns(self._turn_ended)
        self._slow_checks = 0
        self._loading: asyncio.Task[None] | None = None
        self.metrics = Metrics(
            running=lambda: self.admission.running,
            waiting=lambda: self.admission.waiting,
            engine=lambda: self.engine.metrics(),
        )
        self.engine.on_step = self.metrics.step
        self._chores: list[Callable[[], Coroutine[Any, Any, None]]] = [self.metrics.probe_lag]
        """What goes on from start to end."""

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._shut_down()
        self._end()

    async def _start(self) -> None:
        """Begin to load the engine; return when it is loaded, at once where it loads slowly."""
        # made here, after gunicorn's fork: threads do not survive one
        slots = self.capacity.num_of_concurrent_executions
        self.state = "starting"
        self._stuck = 0
        self.admission = Admission(slots, self.capacity.max_queue_size)
        self._threads = DaemonExecutor(slots, "aiochatstream-generate")
        self._prompt_threads = DaemonExecutor(PROMPT_THREADS, "aiochatstream-prompt")
        self._constraint_threads = DaemonExecutor(CONSTRAINT_THREADS, "aiochatstream-check")
        self._housekeeping = [asyncio.create_task(chore()) for chore in self._chores]
        self._loading = asyncio.create_task(self._load())
        if self.engine.loads_slowly:
            self._loading.add_done_callback(self._log_failure)
            return
        try:
            await self._loading
        except BaseException:
            self._end()  # nobody leaves what could not be entered
            raise

    async def _shut_down(self) -> None:
        """Take no more turns; wait for those under way, as long as the limits say, then stop them."""
        self.drain()
        if not await self._turns.wait(self.limits.shutdown_timeout):
            self.logger.warning(self._texts.stopping.format(count=len(self._turns)))
            self._turns.stop_all("shutdown")
            if not await self._turns.wait(ENDING_SECONDS):
                self._stuck = self._turns.abandon_all()
                if self._stuck:
                    self.logger.error(self._texts.stuck.format(count=self._stuck))
                await self._turns.wait(SAVE_SECONDS)  # what was said until then

    def _end(self) -> None:
        """Give back what :meth:`_start` took; a turn that is stuck keeps its thread and the engine."""
        for task in self._housekeeping:
            task.cancel()
        if self._loading is not None:
            self._loading.cancel()
        for threads in (self._prompt_threads, self._constraint_threads):
            threads.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=not self._stuck)
        if not self._stuck:
            self.engine.close()

    async def wait_ready(self) -> None:
        """Return when the model is loaded. Raises what loading it raised."""
        if self._loading is None:
            raise RuntimeError("Call chat_stream.setup(app) and start the app first, or use `async with chat_stream`.")
        logged = self._loading.remove_done_callback(self._log_failure)  # who waits is told
        try:
            await asyncio.shield(self._loading)
        except asyncio.CancelledError:
            if logged:
                self._loading.add_done_callback(self._log_failure)
            raise

    def check_ready(self) -> None:
        """Raise :class:`~aiochatstream.errors.Starting`, :class:`~aiochatstream.errors.Draining` or
        :class:`~aiochatstream.errors.EngineStopped` unless ready.
        """
        if self.state == "starting":
            raise Starting("The model is being loaded.", retry_after=5)
        if self.state == "failed":
            raise LoadFailed("The model could not be loaded; the server's log says why.", retry_after=60)
        if self.state == "draining":
            raise Draining("The server is shutting down and accepts no new requests.", retry_after=5)
        if self.engine.stopped:
            raise EngineStopped("The engine has stopped; the server's log says why.", retry_after=60)

    def check_room(self) -> None:
        """Raise as :meth:`check_ready` and :meth:`Admission.check_room`, for a request whose body is not read yet."""
        try:
            self.check_ready()
            self.admission.check_room()
        except Unavailable as error:
            self.metrics.refused(error.code)
            raise

    def drain(self) -> None:
        """Take no new requests (503 ``draining``) and send away those who wait; running answers go on."""
        self.state = "draining"
        self.admission.drain()

    def override(
        self, *overrides: ParamOverrides | None, stop: tuple[str, ...] = (), where: str = "params."
    ) -> GenerationParams:
        """:meth:`GenerationParams.override` of this server's own parameters, within its limits."""
        return self.params.override(
            *overrides, stop=stop, limits=self.param_limits, vocabulary_size=self.engine.vocab_size, prefix=where
        )

    def _job(
        self, made: Prompt, params: GenerationParams, ticket: Ticket, pairs: list[tuple[str, str]], **turn: Any
    ) -> Job:
        """What a turn is to do.

        :param pairs: replacements on the way out.
        :param turn: what makes it one of a conversation.
        """
        generate = self.engine.generate
        if not params.max_new_tokens:
            generate = functools.partial(prefill_only, generate)
        answer = functools.partial(generate, made, params)
        if pairs:
            answer = functools.partial(apply_replacements, answer, pairs)
        return Job(
            prompt_tokens=len(made.token_ids),
            ticket=ticket,
            generate=functools.partial(DeltaStream, self._threads, answer),
            on_gap=self.metrics.gap,
            retry_after=self.admission.retry_after,
            max_queue_wait=self.limits.max_queue_wait,
            max_answer=self.limits.max_answer,
            **turn,
        )

    def _make_prompt(self, prompt: AbstractChatPrompt, params: GenerationParams) -> Prompt:
        """In a thread: templates and tokenizers block."""
        self.engine.check(params)
        ids: list[int] = []
        prompt.tokenizer = self.engine.tokenizer
        if prompt.tokenizer is not None:
            ids = fit(prompt, context_len=self.context_len, max_new_tokens=params.max_new_tokens)
        return Prompt(prompt.get_messages(), ids, continued=bool(prompt.open_answer))

    def _own(self, made: Prompt, owner: str, *, own_system: bool) -> Prompt:
        """Return ``made`` as a prompt of ``owner``.

        :param own_system: whether the server's own words are before the conversation, and not a client's.
        """
        shared = _common(self._head, made.token_ids) if own_system else 0
        return dataclasses.replace(made, owner=owner, shared_tokens=shared)

    async def _in_prompt_thread(self, function: Callable[..., Result], *args: Any) -> Result:
        return await self._in_thread_of(self._prompt_threads, function, *args)

    async def _check(self, params: GenerationParams) -> None:
        """Raise what the engine refuses an answer with ``params`` with. To be called before a slot is reserved.

        Raises :class:`~aiochatstream.errors.TooManyRequests` if too many slow checks wait.
        """
        if self.engine.checks_quickly(params):
            await self._in_prompt_thread(self.engine.check, params)
            return
        if self._slow_checks >= MAX_SLOW_CHECKS:
            raise TooManyRequests(f"{MAX_SLOW_CHECKS} unknown schemas are being checked; send this one later.")
        self._slow_checks += 1
        try:
            await self._in_thread_of(self._constraint_threads, self.engine.check, params)
        finally:
            self._slow_checks -= 1

    async def _in_thread_of(self, threads: Executor, function: Callable[..., Result], *args: Any) -> Result:
        def call() -> Result:
            try:
                return function(*args)
            except BaseException as error:  # what is no Exception, or means another thing, would end the event loop
                if isinstance(error, Exception) and not isinstance(error, StopIteration | CancelledError):
                    raise
                raise RuntimeError(f"{error!r} in a prompt class") from error

        return await asyncio.get_running_loop().run_in_executor(threads, call)

    def _turn_ended(self, turn: RunningTurn, last: Ended | Failed) -> None:
        reason = last.finish_reason if isinstance(last, Ended) else last.error.code
        figures = {**turn.usage._asdict(), **turn.timing._asdict()}
        self.metrics.finished(reason, **figures)
        told = " ".join(f"{name}={value}" for name, value in figures.items())
        self.logger.info("answer %s finished_reason=%s %s", turn.message_id, reason, told)

    def _check_logit_bias(self) -> None:
        """How many token ids there are is known only from the model."""
        try:
            self.override(ParamOverrides(logit_bias=self.params.logit_bias), where="")
        except InvalidValue as error:
            raise ValueError(error.detail) from None

    async def _load(self) -> None:
        try:
            await in_daemon_thread(self._load_engine)
        except BaseException:
            self.state = "failed"
            raise
        if self.state == "starting":
            self.state = "ready"

    def _load_engine(self) -> None:
        self.engine.load(self.capacity.num_of_concurrent_executions, self.context_len)
        limit = self.engine.max_context_len
        if limit is not None:
            if self.limits.context_len is not None and self.context_len > limit:
                raise ValueError(f"context_len: at most {limit} with this model, not {self.context_len}.")
            self.context_len = min(self.context_len, limit)
        if self.engine.tokenizer is not None and self.context_len <= self.params.max_new_tokens:
            raise ValueError(f"max_new_tokens: must be below context_len ({self.context_len}) with this model.")
        self._check_logit_bias()
        self._prompt_class = self._prompt_class_of(self.engine.tokenizer)
        self._head = self._find_head()
        self.engine.share(self._head)

    def _find_head(self) -> list[int]:
        """Return the tokens that all prompts begin with.

        Raises what the prompt class raises if it does not go with this model: better now than at the first request.
        """
        prompts = []
        for conversation in (Conversation(), PROBE_CONVERSATION):
            prompt = self._prompt_class()
            prompt.conversation, prompt.message = conversation, PROBE
            prompts.append(self._make_prompt(prompt, self.params).token_ids)
            prompt.check()
        return prompts[0][: _common(*prompts)]

    def _log_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.logger.error(self._texts.load_failed, exc_info=error)


def _common(first: list[int], second: list[int]) -> int:
    """Return the number of ids from the beginning on that are the same."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))
