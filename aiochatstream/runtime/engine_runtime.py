"""An engine with its threads, slots and queue: the part of a server that all answers share."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import logging
import random
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Executor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from aiochatstream.conversations.conversation import Conversation, Turn
from aiochatstream.engines import AnswerStream, AsyncDeltaStream, AsyncEngine, DeltaStream, Engine, OnDelta, Prompt
from aiochatstream.engines.prefill_only import prefill_only
from aiochatstream.engines.replacements import apply_replacements
from aiochatstream.errors import (
    Draining,
    InvalidValue,
    LoadFailed,
    Starting,
    TooManyRequests,
    Unavailable,
)
from aiochatstream.params import (
    DEFAULT_CONTEXT_LEN,
    MAX_NEW_TOKENS,
    THINKING_LEVELS,
    THINKING_VARIABLES,
    Capacity,
    GenerationParams,
    Limits,
    ParamLimits,
    ParamOverrides,
    ParamSource,
    ThinkingLevel,
)
from aiochatstream.prompts import AbstractChatPrompt, ChatPrompt, CompletionsOnly, TemplateArguments, fit
from aiochatstream.prompts.base import without_thoughts
from aiochatstream.runtime.admission import Admission, Ticket
from aiochatstream.runtime.daemon_threads import DaemonExecutor, in_daemon_thread
from aiochatstream.runtime.events import Ended, Failed
from aiochatstream.runtime.metrics import Metrics
from aiochatstream.runtime.model_params import accept_model_params
from aiochatstream.runtime.running_turn import ENDING_SECONDS, SAVE_SECONDS, Job, RunningTurn
from aiochatstream.runtime.turns import Turns
from aiochatstream.texts import Locale, texts_for

if TYPE_CHECKING:
    from redis.asyncio import Redis

State = Literal["starting", "ready", "draining", "failed"]

Result = TypeVar("Result")

ANSWER_SHARE = 4
"""With ``fill_context``, turns are dropped to leave the context's length divided by this for the answer."""

PROBE = "Hello"
PROBE_CONVERSATION = Conversation((Turn("1", "1", ""),))
"""Message and history of two trial prompts. Their common prefix is the server's own."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """Configuration of a :class:`Runtime`.

    engine: generates the answers.
    prompt_class_of: returns the prompt class, given the tokenizer (None for an engine without one).
    params: default parameters of answers.
    capacity: number of concurrent answers and waiting requests.
    limits: limits of time and size.
    param_limits: values that requests may set.
    seed: seed of the sequence of the answers' seeds; None for a random one.
    locale: language of log lines for operators.
    logger: logger of loading, answers and shutdown.
    """

    engine: Engine | AsyncEngine
    prompt_class_of: Callable[[Any], type[AbstractChatPrompt]]
    params: GenerationParams
    capacity: Capacity
    limits: Limits
    param_limits: ParamLimits
    seed: int | None
    locale: Locale
    logger: logging.Logger


class Runtime:
    """The engine, its threads, slots and queue, and the running turns.

    An ``async with`` loads the engine, and closes it at the end. It can be entered again.
    """

    def __init__(self, config: RuntimeConfig) -> None:
        self._texts = texts_for(config.locale)
        self.logger = config.logger
        self.engine = config.engine
        self.params = self._app_params = config.params
        """Default parameters of answers; from the time the engine is loaded with the model's own values."""
        self._model_params: dict[str, Any] = {}
        """The model's own values among them; set when the engine is loaded."""
        self.capacity, self.limits, self.param_limits = config.capacity, config.limits, config.param_limits
        requested = self.limits.context_len
        self.context_len = requested if isinstance(requested, int) else DEFAULT_CONTEXT_LEN
        """Maximum length of prompt and answer together in tokens; set when the engine is loaded."""
        self.state: State = "starting"
        requested = self.capacity.num_of_concurrent_executions
        if isinstance(self.engine, Engine) and (requested or 0) > MAX_THREADS:
            raise ValueError(
                f"num_of_concurrent_executions: must be from 1 to {MAX_THREADS} with an engine that needs a thread for "
                f"each answer, not {requested}."
            )
        self._new_admission: Callable[[int, int], Admission] = Admission
        self.admission = Admission(self._slots(), self.capacity.max_queue_size)
        self._prompt_class_of = config.prompt_class_of
        self._prompt_class: type[AbstractChatPrompt] = ChatPrompt
        """Set when the engine is loaded."""
        self._template_arguments: TemplateArguments | None = None
        """Arguments that the prompt class supports; None until the engine is loaded, and for an engine without a
        tokenizer, which receives all parameters itself."""
        self._server_prefix: list[int] = []
        """Tokens at the beginning of every prompt; set when the engine is loaded."""
        self._seeds = random.Random(config.seed)  # noqa: S311 - sampling needs no secrecy
        self._has_seed = config.seed is not None
        self._turns = Turns(self._turn_ended)
        self.slow_checks = 0
        """Number of requests whose constraint is being checked, or waits for its check."""
        self._loading: asyncio.Task[None] | None = None
        self.metrics = Metrics(
            running=lambda: self.admission.running,
            waiting=lambda: self.admission.waiting,
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

    @property
    def chats(self) -> bool:
        """False if the model has no format of chats, and only completes texts. Known once it is loaded."""
        return not issubclass(self._prompt_class, CompletionsOnly)

    @property
    def thinking_levels(self) -> tuple[ThinkingLevel, ...]:
        """Levels of ``thinking`` that differ for this model and that requests may choose, in ascending order after
        ``auto``; empty if its chat template has no switch for thoughts, and until it is loaded.

        For a template that knows only on and off, ``high`` is on, unless the server allows only a lower level.
        """
        arguments = self._template_arguments or TemplateArguments()
        return arguments.distinct_levels(self.param_limits.thinking or THINKING_LEVELS)

    @property
    def template_variables(self) -> tuple[str, ...]:
        """Variables of the chat template that requests may set in ``chat_template_kwargs``."""
        names = (self._template_arguments or TemplateArguments()).names
        limits = self.param_limits
        return tuple(
            name
            for name in names
            if (limits.thinking is None if limits.chat_template_kwargs is None else name in limits.chat_template_kwargs)
            and (limits.thinking is None or name not in THINKING_VARIABLES)
        )

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
        return min(limits, default=DEFAULT_SLOTS)

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

    def override(
        self, *overrides: ParamOverrides | None, stop: tuple[str, ...] = (), prefix: str = "params."
    ) -> GenerationParams:
        """Return :meth:`GenerationParams.override` of the server's parameters, within its limits.

        Raise :class:`~aiochatstream.errors.InvalidValue` also for arguments that the chat template does not support.
        """
        params = self.params.override(
            *overrides, stop=stop, limits=self.param_limits, vocabulary_size=self.engine.vocab_size, prefix=prefix
        )
        if self._template_arguments is not None:
            self._template_arguments.check(params, prefix)
        return params

    def source_of(self, name: str, overrides: ParamOverrides) -> ParamSource:
        """Return the origin of a parameter's value.

        :param overrides: parameters of the user.
        """
        if getattr(overrides, name) is not None:
            return "user"
        if name in self._app_params.model_fields_set:
            return "app"
        return "model" if name in self._model_params else "default"

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
        return Job(
            prompt_tokens=len(prompt.token_ids),
            ticket=ticket,
            generate=functools.partial(self._generate, prompt, params, replacements),
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

    def _make_prompt(self, chat_prompt: AbstractChatPrompt, params: GenerationParams) -> Prompt:
        """Return the prompt of an answer. Call it in a thread: templates and tokenizers block."""
        self.engine.check(params)
        ids: list[int] = []
        self._prepare(chat_prompt, params)
        if chat_prompt.tokenizer is not None:
            answer_tokens, needed = params.max_new_tokens, None
            if self.limits.fill_context:
                answer_tokens = min(answer_tokens, self.context_len // ANSWER_SHARE)
                needed = 1 if chat_prompt.open_answer else None  # the answer so far may leave less than the share
            ids = fit(chat_prompt, context_len=self.context_len, answer_tokens=answer_tokens, min_answer_tokens=needed)
        messages = without_thoughts(chat_prompt.get_messages())
        return Prompt(messages, ids, continued=bool(chat_prompt.open_answer), may_shorten=True)

    def _prepare(self, chat_prompt: AbstractChatPrompt, params: GenerationParams) -> None:
        """Set the tokenizer of ``chat_prompt``, and the arguments of its template."""
        chat_prompt.tokenizer = self.engine.tokenizer
        if self._template_arguments is not None:
            chat_prompt.template_kwargs = self._template_arguments.values(params)

    def _check_chats(self) -> None:
        """Raise :class:`~aiochatstream.errors.BadRequest` if the model only completes texts."""
        if not self.chats:
            CompletionsOnly.refuse()

    def _shorten_answer(self, params: GenerationParams, prompt: Prompt) -> GenerationParams:
        """Return ``params`` with at most the tokens that ``prompt`` leaves in the context."""
        left = self.context_len - len(prompt.token_ids)
        if self.engine.tokenizer is None or params.max_new_tokens <= left:
            return params
        return params.model_copy(update={"max_new_tokens": left})

    def _with_owner(self, prompt: Prompt, owner: str, affinity: str, *, has_server_prefix: bool) -> Prompt:
        """Return ``prompt`` as a prompt of ``owner``.

        :param affinity: see :class:`~aiochatstream.Prompt`.
        :param has_server_prefix: True if the prompt begins with the server's own text, not with a client's.
        """
        shared = _common_length(self._server_prefix, prompt.token_ids) if has_server_prefix else 0
        return dataclasses.replace(prompt, owner=owner, affinity=affinity, shared_tokens=shared)

    def _with_seed(self, params: GenerationParams, seed: int | None = None) -> GenerationParams:
        """Return ``params`` with ``seed``, or with the next seed of the server's sequence if that is None.

        A seed of a random sequence is not among the parameters that somebody has set.
        """
        seeded = params.model_copy(update={"seed": self._seeds.getrandbits(63) if seed is None else seed})
        if seed is None and not self._has_seed:
            seeded.model_fields_set.discard("seed")
        return seeded

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

    def _check_params(self) -> None:
        """Check the server's own parameters against the vocabulary and the template, which are known after loading."""
        try:
            self.override(ParamOverrides(logit_bias=self.params.logit_bias), prefix="")
        except InvalidValue as error:
            raise ValueError(error.detail) from None

    async def _load(self) -> None:
        try:
            if isinstance(self.engine, AsyncEngine):
                self.engine.on_capacity = self._capacity_changed
                await self.engine.load(self.capacity.num_of_concurrent_executions, self._requested_context_len)
                self._capacity_changed()
            await in_daemon_thread(self._prepare_engine)
        except BaseException:
            self.state = "failed"
            raise
        if self.state == "starting":
            self.state = "ready"

    @property
    def _requested_context_len(self) -> int | None:
        """Context length to load the engine with; None for the model's own."""
        requested = self.limits.context_len
        if requested == "max" or (requested is None and isinstance(self.engine, AsyncEngine)):
            return None  # the default limits the memory of engines in this process
        return requested or DEFAULT_CONTEXT_LEN

    def _set_context_len(self) -> None:
        limit = self.engine.max_context_len
        length = self._requested_context_len or limit or DEFAULT_CONTEXT_LEN
        self.context_len = min(length, limit or length)

    def _prepare_engine(self) -> None:
        """Load the engine unless it is asynchronous, and set the properties that depend on its model. Blocking."""
        if isinstance(self.engine, Engine):
            self.engine.load(self._slots(), self._requested_context_len)
        requested, limit = self.limits.context_len, self.engine.max_context_len
        if limit is not None and isinstance(requested, int) and requested > limit:
            raise ValueError(f"context_len: must be at most {limit} with this model, not {requested}.")
        self._set_context_len()
        self._set_params()
        self._prompt_class = self._prompt_class_of(self.engine.tokenizer)
        self._template_arguments = self._find_template_arguments()
        self._check_params()
        self._server_prefix = self._find_server_prefix()
        self.engine.share(self._server_prefix)

    def _set_params(self) -> None:
        """Add the values that depend on the model to the application's parameters."""
        self._model_params = accept_model_params(self.engine.default_params, self._app_params, self.param_limits)
        values = dict(self._model_params)
        if self.engine.tokenizer is not None:
            if self.limits.fill_context:
                values["max_new_tokens"] = min(self.context_len - 1, MAX_NEW_TOKENS)
            elif self._app_params.max_new_tokens >= self.context_len:
                raise ValueError(f"max_new_tokens: must be below context_len ({self.context_len}) with this model.")
        elif self.limits.fill_context and isinstance(self.engine, AsyncEngine):
            values["max_new_tokens"] = MAX_NEW_TOKENS
        self.params = self._app_params.with_values(values)
        if self.limits.fill_context:
            self.params.model_fields_set.discard("max_new_tokens")  # an engine that knows the context shortens it

    def _find_template_arguments(self) -> TemplateArguments | None:
        """Return the arguments that the prompt class supports: none without a chat template."""
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            return None
        has_template = issubclass(self._prompt_class, ChatPrompt) and getattr(tokenizer, "chat_template", None)
        return TemplateArguments.of(tokenizer) if has_template else TemplateArguments()

    def _find_server_prefix(self) -> list[int]:
        """Return the tokens at the beginning of all prompts of chats.

        Raise the error of a prompt class that does not match the model, before the first request does.
        """
        if not self.chats:
            return []
        prompts = []
        for conversation in (Conversation(), PROBE_CONVERSATION):
            chat_prompt = self._prompt_class()
            chat_prompt.conversation, chat_prompt.message = conversation, PROBE
            prompts.append(self._make_prompt(chat_prompt, self.params).token_ids)
            chat_prompt.check()
        return prompts[0][: _common_length(*prompts)]

    def _log_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.logger.error(self._texts.load_failed, exc_info=error)


def affinity_of(*texts: str) -> str:
    """Return the :attr:`Prompt.affinity` of a conversation that ``texts`` identify."""
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()


def _common_length(first: list[int], second: list[int]) -> int:
    """Return the length of the common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(first), len(second)))
