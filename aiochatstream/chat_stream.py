"""ChatStream: one object that wires admission, prompts, engine and sessions together and lives in an aiohttp app."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import aiohttp_session
from aiohttp import web

from aiochatstream.admission import Admission, Ticket
from aiochatstream.engines import DeltaStream, Engine, FunctionEngine, Prompt, TextFunction
from aiochatstream.engines.replacements import replaced
from aiochatstream.errors import ConversationBusy, Draining, NothingToRegenerate, Starting
from aiochatstream.metrics import Metrics
from aiochatstream.params import GenerationParams, Limits, WireFormat, choose_overload_status, validated
from aiochatstream.prompts import AbstractChatPrompt, ChatPrompt, fit
from aiochatstream.roles import Roles
from aiochatstream.sessions import (
    AgentSession,
    ConversationStore,
    CookieUserSession,
    MemoryConversationStore,
    UserSession,
    keeps_data_in_cookie,
    load_session,
)
from aiochatstream.threads import in_daemon_thread
from aiochatstream.turns import ENDING_SECONDS, Ended, Failed, Job, RunningTurn, StopReason, Turns
from aiochatstream.web import cors, handlers, place, routes
from aiochatstream.web.access import is_agent
from aiochatstream.web.completion import Callback, Completions
from aiochatstream.web.presence import Presence, comes_from_here
from aiochatstream.web.promotion import phrase_attempts

if TYPE_CHECKING:
    from aiochatstream.web.schemas import ChatRequest

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "draining", "failed"]

Result = TypeVar("Result")

DEFAULT_CONTEXT_LEN = 2048

PROMPT_THREADS = 2
"""Threads for the short jobs of rendering and tokenising prompts."""


class ChatStream:
    """A streaming chat with one model, for many users at once.

    Hand it a model, :meth:`setup` it in an aiohttp application that has aiohttp-session, and call
    :meth:`handle_chat_stream_request` in a route::

        chat_stream = ChatStream(model=model, tokenizer=tokenizer, device="cpu", chat_prompt_clazz=ChatPrompt)
        chat_stream.setup(app)

    :param num_of_concurrent_executions: answers that are generated at the same time, 1 to 1024.
    :param max_queue_size: requests that wait beyond that, 0 to 100000; the next one gets 503.
    :param model: a loaded HuggingFace causal language model, or a function (also a functools.partial) that loads one.
        A function is called in a thread when the app starts; until it returns, requests get 503 ``starting``.
    :param tokenizer: its tokenizer, or a function that loads it.
    :param engine: instead of model and tokenizer: an :class:`Engine`, or a blocking generator function
        ``f(messages, params)`` that yields text.
    :param device: where the model is to run (a torch device or its name); None leaves it where it is.
    :param chat_prompt_clazz: the class that writes the prompt, a subclass of :class:`AbstractChatPrompt`.
    :param max_new_tokens: tokens an answer may have, 1 to 1000000; also the most that a request may ask for.
    :param context_len: tokens that prompt and answer may have together, more than max_new_tokens. None is the model's
        own limit, at most 2048.
    :param temperature: 0 (greedy) to 2.
    :param top_k: 1 to 1000; None or 0 is off.
    :param top_p: above 0, up to 1 (off).
    :param repetition_penalty: 0.01 to 10; 1 is off.
    :param seed: seeds the sequence of the answers' seeds, 0 to 2**63 - 1; None is random.
    :param max_queue_wait: seconds that a request waits for a slot before it gets 503.
    :param max_answer: seconds that an answer may take; it is then ended with finish reason ``length``.
    :param write_timeout: seconds that a client may take nothing of a full buffer before it counts as gone.
    :param shutdown_timeout: seconds that running answers may go on at shutdown. Below gunicorn's graceful_timeout.
    :param max_request_bytes: longest request body; the app's ``client_max_size`` holds, too.
    :param wire_format: ``text``, ``sse``, ``json``, ``chatstream`` or ``chatstream-older``, for clients whose headers
        do not choose.
    :param overload_status: HTTP status of a full queue, 503 (the default) or 429.
    :param too_many_request_as_http_error: chatstream's name, superseded by ``overload_status``: True is 429, False
        changes nothing (a full queue is never a 200 here).
    :param conversation_store: where conversations are kept. None: in the cookie where the app's sessions are
        encrypted cookies, in the memory of this process otherwise.
    :param allow_metrics: says who may read /metrics; by default who asks from this machine, and not through a proxy.
    :param name: what /get_load calls this worker.
    :param namespace: keeps the conversations and roles of several ChatStreams apart that share an app's sessions; the
        same in all worker processes. Empty, or 1 to 64 of A-Z a-z 0-9 - _.
    :param client_roles: who may call what, in chatstream's shape; see :class:`~aiochatstream.roles.Roles`. None: one
        role for all browsers, which may call all but get_prompt and get_resource_usage.
    :param allowed_origins: other origins whose pages may call this, each as ``https://app.example``.
        :meth:`append_apis` does what CORS takes; who mounts :meth:`routes` does it oneself.

    Raises TypeError for a wrong kind of argument and ValueError for one out of its range.
    """

    def __init__(
        self,
        *,
        num_of_concurrent_executions: int = 2,
        max_queue_size: int = 5,
        model: Any = None,
        tokenizer: Any = None,
        engine: Engine | TextFunction | None = None,
        device: Any = None,
        chat_prompt_clazz: type[AbstractChatPrompt] = ChatPrompt,
        max_new_tokens: int = 256,
        context_len: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        max_queue_wait: float = 60.0,
        max_answer: float = 300.0,
        write_timeout: float = 30.0,
        shutdown_timeout: float = 20.0,
        max_request_bytes: int = 1 << 20,
        wire_format: WireFormat = "text",
        overload_status: int | None = None,
        too_many_request_as_http_error: bool = False,
        conversation_store: ConversationStore | None = None,
        allow_metrics: Callable[[web.Request], bool] = comes_from_here,
        name: str = "node:0",
        namespace: str = "",
        client_roles: Mapping[str, Any] | None = None,
        allowed_origins: Collection[str] = (),
    ) -> None:
        if not (inspect.isclass(chat_prompt_clazz) and issubclass(chat_prompt_clazz, AbstractChatPrompt)):
            raise TypeError(
                f"chat_prompt_clazz: must be a subclass of AbstractChatPrompt (the class itself, not an object of it), "
                f"not {chat_prompt_clazz!r}."
            )
        self.limits = validated(
            Limits,
            {
                "num_of_concurrent_executions": num_of_concurrent_executions,
                "max_queue_size": max_queue_size,
                "context_len": context_len,
                "max_queue_wait": max_queue_wait,
                "max_answer": max_answer,
                "write_timeout": write_timeout,
                "shutdown_timeout": shutdown_timeout,
                "max_request_bytes": max_request_bytes,
                "wire_format": wire_format,
                "overload_status": choose_overload_status(overload_status, too_many_request_as_http_error),
            },
        )
        self.params = validated(
            GenerationParams,
            {
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "top_k": 0 if top_k is None else top_k,
                "top_p": top_p,
                "repetition_penalty": repetition_penalty,
                "seed": 0 if seed is None else seed,
            },
        )
        self.context_len = context_len or DEFAULT_CONTEXT_LEN
        if self.context_len <= max_new_tokens and (engine is None or context_len is not None):
            raise ValueError(f"context_len: must be above max_new_tokens ({max_new_tokens}), not {self.context_len}.")
        if not isinstance(namespace, str) or not re.fullmatch("[A-Za-z0-9_-]{0,64}", namespace):
            raise ValueError(f"namespace: must be empty or 1 to 64 of A-Z a-z 0-9 - _, not {namespace!r}.")
        self.name = name
        self.roles = Roles(client_roles, routes.APIS)
        self.phrase_attempts = phrase_attempts()
        self.allowed_origins = cors.checked_origins(allowed_origins)
        self.place = place.Place(namespace, cross_origin=bool(self.allowed_origins))
        self.state: State = "starting"
        self.admission = Admission(num_of_concurrent_executions, max_queue_size)
        self.presence = Presence()
        self.completions = Completions()
        self.engine = _engine(engine, model, tokenizer, device)
        self._chat_prompt_clazz = chat_prompt_clazz
        self._seeds = random.Random(seed)  # noqa: S311 - the draws of a language model need no secrecy
        self._store = conversation_store
        self._memory = MemoryConversationStore()
        self._turns = Turns(self._turn_ended)
        self.metrics = Metrics(
            running=lambda: self.admission.running,
            waiting=lambda: self.admission.waiting,
            sessions=lambda: len(self._memory),
            engine=lambda: self.engine.figures(),
        )
        self.engine.on_step = self.metrics.step
        self.allow_metrics = allow_metrics
        self._loading: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<ChatStream {self.name} {self.state} {self.admission!r}>"

    def setup(self, app: web.Application) -> None:
        """Let ``app`` own the start-up and clean-up. Sessions must be set up in ``app`` or in its parent.

        Once or more often for one app. Raises RuntimeError for a second app.
        """
        if self.place.enter(app):
            app.cleanup_ctx.append(self._run_in)
            app.on_shutdown.append(self._on_shutdown)

    def routes(
        self, include: Collection[str] | None = None, exclude: Collection[str] | None = None, *, prefix: str = ""
    ) -> list[web.RouteDef]:
        """Endpoints for ``app.add_routes``: all, or those of the API names.

        :param prefix: before each path, as ``/support``: for two ChatStreams in one app.

        Raises ValueError for unknown names. CORS for ``allowed_origins`` is then the app's own.
        """
        return routes.routes(self, include, exclude, prefix)

    def append_apis(self, app: web.Application, options: Mapping[str, Any]) -> None:
        """Add endpoints to ``app``, with CORS for ``allowed_origins``, and :meth:`setup` in it.

        :param options: exactly one of ``{"include": [API names]}``, ``{"exclude": [API names]}`` and ``{"all": True}``.

        Raises ValueError for other options.
        """
        chosen = routes.chosen_routes(self, options)
        self.setup(app)
        added = app.add_routes(chosen)
        if self.allowed_origins:
            cors.allow_origins(app, added, self.allowed_origins)

    def append_middlewares(self, app: web.Application, opts: Mapping[str, Any] | None = None) -> None:
        """Give ``app`` sessions, unless it has some.

        :param opts: ``{"session_storage": a storage of aiohttp-session}``; a :class:`MemoryStorage` by default.

        Raises ValueError for other options.
        """
        storage = place.storage_option({} if opts is None else opts)
        if not place.has_sessions(app):
            aiohttp_session.setup(app, storage)

    def start_queue_worker(self) -> Awaitable[None]:
        """chatstream's name, superseded by :meth:`setup`: does nothing, and may be awaited."""
        return _Nothing()

    # for routes of an app's own: each with the errors and the checks of the mounted one
    handle_stop_request = handlers.stop
    handle_clear_context_request = handlers.clear_context
    handle_history_request = handlers.history
    handle_get_load_request = handlers.get_load
    handle_healthz_request = handlers.healthz
    handle_readyz_request = handlers.readyz
    handle_metrics_request = handlers.metrics

    async def handle_chat_stream_request(
        self,
        request: web.Request,
        request_body: dict[str, Any] | None = None,
        callback: Callback | None = None,
    ) -> web.StreamResponse:
        """Answer ``POST /chat_stream``: what the route's handler of an app calls.

        :param request_body: what the body says, from a handler that has read it; validated as the body itself would be.
        :param callback: called as ``callback(request, message)``, once, when the request is over. The message is
            ``success`` (also for an answer that was stopped on request), ``client_disconnected_before_streaming`` (no
            text was sent), ``client_disconnected_while_streaming``, or begins with ``unknown_error_occurred`` and goes
            on to say why, for refusals too. A plain function runs on the event loop and should be quick; a coroutine
            function may take its time. What it raises is logged.
        """
        return await handlers.chat_stream(self, request, request_body, callback)

    async def wait_ready(self) -> None:
        """Return when the model is loaded. Raises what loading it raised."""
        if self._loading is None:
            raise RuntimeError("Call chat_stream.setup(app) and start the app first.")
        logged = self._loading.remove_done_callback(_log_failure)  # who waits is told
        try:
            await asyncio.shield(self._loading)
        except asyncio.CancelledError:
            if logged:
                self._loading.add_done_callback(_log_failure)
            raise

    def drain(self) -> None:
        """Take no new requests (503 ``draining``) and send away those who wait; running answers go on."""
        self.state = "draining"
        self.admission.drain()

    def check_ready(self) -> None:
        """Raises :class:`~aiochatstream.errors.Starting` or :class:`~aiochatstream.errors.Draining` unless ready."""
        if self.state == "starting":
            raise Starting("The model is being loaded.", retry_after=5)
        if self.state == "failed":
            raise Starting("The model could not be loaded; the server's log says why.", retry_after=60)
        if self.state == "draining":
            raise Draining("The server is shutting down and takes no new requests.", retry_after=5)

    async def session(self, request: web.Request) -> aiohttp_session.Session:
        """The request's session. Raises :class:`~aiochatstream.errors.SessionsNotSetUp`."""
        self.place.check(request)
        return await load_session(request)

    async def user_session(self, request: web.Request) -> UserSession:
        """The request's user and where the user's conversations are."""
        if is_agent(request):
            return AgentSession(request)
        session = await self.session(request)
        if self._store is not None:
            return UserSession(request, session, self._store, self.place.namespace)
        kind = CookieUserSession if keeps_data_in_cookie(request) else UserSession
        return kind(request, session, self._memory, self.place.namespace)

    def running_turn(self, user: UserSession, name: str) -> RunningTurn | None:
        """The turn of this conversation that is under way in this process."""
        return self._turns.get(user.id, name)

    async def begin_turn(self, user: UserSession, asked: ChatRequest) -> RunningTurn:
        """Take the conversation, a slot or a place in the queue, and make the prompt; then set the turn going.

        Raises what the request is to be refused with; then nothing has changed.
        """
        self.check_ready()
        prompt = self._chat_prompt_clazz()
        params = self.params.override(asked.params, stop=tuple(prompt.get_stop_strs()))
        name = asked.conversation
        turn = await self._turns.take(user.id, name)
        ticket: Ticket | None = None
        try:
            loaded = await user.load(name)
            if asked.regenerate and not loaded.turns:
                raise NothingToRegenerate("There is no message in this conversation to answer again.")
            ticket = self.admission.reserve()
            before = loaded.begin(turn.message_id)
            prompt.conversation, prompt.message = before, asked.user_input or ""
            if asked.regenerate:
                prompt.conversation, prompt.message = before.without_last(), loaded.turns[-1].user
            if asked.params is None or asked.params.seed is None:
                params = params.model_copy(update={"seed": self._seeds.getrandbits(63)})
            made = await self._in_prompt_thread(self._make_prompt, prompt, params.max_new_tokens)
            await user.accept_turn(name, before)
            self.check_ready()  # a shutdown may have begun meanwhile
        except BaseException:
            if ticket is not None:
                ticket.release()
            self._turns.give_up(user.id, name)
            raise
        answer = functools.partial(self.engine.generate, made, params)
        if pairs := prompt.get_replacement_when_output():
            answer = functools.partial(replaced, answer, pairs)
        job = Job(
            before=before,
            base=prompt.conversation,
            user_text=prompt.message,
            prompt_tokens=len(made.token_ids),
            ticket=ticket,
            generate=functools.partial(DeltaStream, self._threads, answer),
            on_gap=self.metrics.gap,
            save=functools.partial(user.save, name, expected_number=loaded.number),
            retry_after=self.admission.retry_after,
            max_queue_wait=self.limits.max_queue_wait,
            max_answer=self.limits.max_answer,
        )
        self._turns.start(user.id, name, job)
        return turn

    async def clear(self, user: UserSession, name: str) -> bool:
        """Forget a conversation, a running answer too; tell whether there was something to forget."""
        discarded = await self.stop_turn(user, name, "discarded")
        try:
            await self._turns.take(user.id, name)  # no new turn begins from what is being forgotten
        except ConversationBusy:
            raise ConversationBusy(
                "The running answer is being discarded, but has not stopped yet. Send again."
            ) from None
        try:
            return await user.forget(name) or discarded is not None
        finally:
            self._turns.give_up(user.id, name)

    async def stop_turn(self, user: UserSession, name: str, reason: StopReason) -> RunningTurn | None:
        """Stop the answer of this conversation, wait for its end (at most 2 s), and return it if there was one."""
        turn = self._turns.get(user.id, name)
        if turn is not None:
            turn.stop(reason)
            await turn.wait_ended()
        return turn

    def _make_prompt(self, prompt: AbstractChatPrompt, max_new_tokens: int) -> Prompt:
        """In a thread: templates and tokenizers block."""
        ids: list[int] = []
        prompt.tokenizer = self.engine.tokenizer
        if prompt.tokenizer is not None:
            ids = fit(prompt, context_len=self.context_len, max_new_tokens=max_new_tokens)
        return Prompt(prompt.get_messages(), ids)

    async def _in_prompt_thread(self, function: Callable[..., Result], *args: Any) -> Result:
        def call() -> Result:
            try:
                return function(*args)
            except StopIteration as error:  # which a future cannot hold
                raise RuntimeError("StopIteration in a prompt class") from error

        return await asyncio.get_running_loop().run_in_executor(self._prompt_threads, call)

    async def _run_in(self, app: web.Application) -> AsyncIterator[None]:
        self.place.check_start(app)
        # made here, after gunicorn's fork: threads do not survive one
        slots = self.limits.num_of_concurrent_executions
        self.state = "starting"
        self.admission = Admission(slots, self.limits.max_queue_size)
        self.presence = Presence()
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="aiochatstream-generate")
        self._prompt_threads = ThreadPoolExecutor(PROMPT_THREADS, thread_name_prefix="aiochatstream-prompt")
        self._loading = asyncio.create_task(self._load())
        if self.engine.loads_slowly:
            self._loading.add_done_callback(_log_failure)
        else:
            await self._loading
        probe = asyncio.create_task(self.metrics.probe_lag())
        async with self.completions, self.presence:
            yield
        probe.cancel()
        self._loading.cancel()
        self._prompt_threads.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=not self._turns)
        if not self._turns:
            self.engine.close()

    def _turn_ended(self, turn: RunningTurn, last: Ended | Failed) -> None:
        reason = last.finish_reason if isinstance(last, Ended) else last.error.code
        figures = {**turn.usage._asdict(), **turn.timing._asdict()}
        self.metrics.finished(reason, **figures)
        told = " ".join(f"{name}={value}" for name, value in figures.items())
        logger.info("answer %s finished_reason=%s %s", turn.message_id, reason, told)

    async def _load(self) -> None:
        try:
            await in_daemon_thread(self._load_engine)
        except BaseException:
            self.state = "failed"
            raise
        if self.state == "starting":
            self.state = "ready"

    def _load_engine(self) -> None:
        self.engine.load(self.limits.num_of_concurrent_executions, self.context_len)
        limit = self.engine.max_context_len
        if limit is not None:
            if self.limits.context_len is not None and self.context_len > limit:
                raise ValueError(f"context_len: at most {limit} with this model, not {self.context_len}.")
            self.context_len = min(self.context_len, limit)
        if self.engine.tokenizer is not None and self.context_len <= self.params.max_new_tokens:
            raise ValueError(f"max_new_tokens: must be below context_len ({self.context_len}) with this model.")
        # a prompt class that does not go with this model shows now, not at the first request
        prompt = self._chat_prompt_clazz()
        prompt.message = "Hello"
        self._make_prompt(prompt, self.params.max_new_tokens)

    async def _on_shutdown(self, app: web.Application) -> None:
        self.drain()
        if not await self._turns.wait(self.limits.shutdown_timeout):
            logger.warning("Stopping %d answers that still run after shutdown_timeout.", len(self._turns))
            self._turns.stop_all("shutdown")
            if not await self._turns.wait(ENDING_SECONDS):
                logger.error("%d answers do not stop: their engine is stuck in a step.", len(self._turns))


def _engine(engine: Engine | TextFunction | None, model: Any, tokenizer: Any, device: Any) -> Engine:
    if engine is not None:
        if model is not None or tokenizer is not None:
            raise TypeError("engine: takes the place of model and tokenizer; give one or the other.")
        if isinstance(engine, Engine):
            return engine
        if not callable(engine) or inspect.iscoroutinefunction(engine) or inspect.isasyncgenfunction(engine):
            raise TypeError(
                f"engine: must be an Engine or a plain generator function of (messages, params), not {engine!r}."
            )
        return FunctionEngine(engine)
    for name, value in (("model", model), ("tokenizer", tokenizer)):
        if value is None:
            raise TypeError(f"{name}: give a loaded HuggingFace {name}, or a function that loads it.")
    from aiochatstream.engines.transformers import TransformersEngine  # here, so that importing the package is light

    return TransformersEngine(model, tokenizer, device)


class _Nothing:
    """Awaitable, and no warning where it is not awaited."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("The model could not be loaded", exc_info=error)
