"""ChatStream: one object that wires admission, prompts, engine and sessions together and lives in an aiohttp app."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Generator, Mapping, Sequence
from typing import Any, Literal

import aiohttp_session
from aiohttp import web

from aiochatstream.conversations.store import ConversationStore
from aiochatstream.engine_choice import engine_of, prompt_class_of
from aiochatstream.engines import Engine, RecordingEngine, ScriptedEngine, TextFunction, TokenSampler
from aiochatstream.errors import Draining
from aiochatstream.params import Capacity, GenerationParams, Limits, ParamLimits, WireFormat, choose_overload_status
from aiochatstream.prompts import AbstractChatPrompt, ChatPrompt
from aiochatstream.runtime.engine_runtime import DEFAULT_CONTEXT_LEN, RuntimeConfig
from aiochatstream.texts import Locale
from aiochatstream.web import app_binding, routes
from aiochatstream.web.auth import cors
from aiochatstream.web.auth.addresses import is_local_request
from aiochatstream.web.endpoint import mount
from aiochatstream.web.endpoints import chat as handlers
from aiochatstream.web.endpoints import docs as documents
from aiochatstream.web.endpoints import feedback, generation_params, history, page
from aiochatstream.web.endpoints import status as inspection
from aiochatstream.web.feedback import FeedbackCallback
from aiochatstream.web.openai import errors as openai_errors
from aiochatstream.web.openai import routes as openai_routes
from aiochatstream.web.openai.endpoint_context import EndpointContext
from aiochatstream.web.openai.keys import ApiKeys
from aiochatstream.web.openapi.document import OPENAI
from aiochatstream.web.page_config import Page
from aiochatstream.web.server import Server
from aiochatstream.web.streaming.callbacks import Callback
from aiochatstream.web.streaming.disconnects import DisconnectWatcher

PROBE_FOLDER = "probe"


class ChatStream(Server):
    """A streaming chat with one model, for many users at once.

    Hand it a model, :meth:`setup` it in an aiohttp application that has aiohttp-session, and call
    :meth:`handle_chat_stream_request` in a route::

        chat_stream = ChatStream(model=model, tokenizer=tokenizer, device="cpu", chat_prompt_clazz=ChatPrompt)
        chat_stream.setup(app)

    A program without an application uses it in an ``async with``.

    :param num_of_concurrent_executions: answers that are generated at the same time, 1 to 1024.
    :param max_queue_size: requests that wait beyond that, 0 to 100000; the next one gets 503.
    :param model: a loaded HuggingFace causal language model, or a function (also a functools.partial) that loads one.
        A function is called in a thread when the app starts; until it returns, requests get 503 ``starting``.
    :param tokenizer: its tokenizer, or a function that loads it.
    :param engine: instead of model and tokenizer: an :class:`Engine`, or a blocking generator function
        ``f(messages, params)`` that yields text.
    :param use_mock_response: answer without a model, see :class:`ScriptedEngine`. A model and a tokenizer are then
        neither needed nor loaded.
    :param mock_params: the arguments of :class:`ScriptedEngine`, as a dict; they have no effect without mock answers.
    :param record: a folder, in which each answer is kept as a file for a :class:`ReplayEngine`. They hold what people
        said.
    :param probe_mode_enabled: chatstream's name: True records in the folder ``probe``, unless ``record`` names another.
    :param device: where the model is to run (a torch device or its name); None leaves it where it is.
    :param chat_prompt_clazz: the class that writes the prompt, a subclass of :class:`AbstractChatPrompt`; or a function
        that is given the tokenizer when it is loaded, and returns the class, such as ``ChatPrompt.for_model``.
    :param add_special_tokens: whether the tokenizer adds its special tokens (a BOS, mostly) to the prompt's text; None
        is as the prompt class says. A chat template brings its own.
    :param max_new_tokens: tokens an answer may have, 1 to 1000000; also the most that a request may ask for.
    :param context_len: tokens that prompt and answer may have together, more than max_new_tokens. None is the model's
        own limit, at most 2048.
    :param temperature: 0 (greedy) to 2.
    :param top_k: 1 to 1000; None or 0 is off.
    :param top_p: 0 (greedy) to 1 (off).
    :param min_p: 0 (off) to 1. It and the next ones: what answers are made with unless a request's ``params`` or its
        user say otherwise, see :class:`~aiochatstream.params.ParamOverrides`.
    :param typical_p: above 0, up to 1 (off).
    :param repetition_penalty: 0.01 to 10; 1 is off. With ``subtractive`` 0 to 10; 0 is off.
    :param repetition_penalty_method: ``multiplicative`` or ``subtractive``.
    :param presence_penalty: -2 to 2; 0 is off.
    :param frequency_penalty: -2 to 2; 0 is off.
    :param no_repeat_ngram_size: 0 (off) to 100 tokens.
    :param logit_bias: up to 300 token ids with numbers from -100 to 100; None is off.
    :param param_limits: the least and the most that requests and users may set, by name, where that is to be less than
        anyone may: ``{"temperature": (0, 1), "top_k": (1, 500)}``. The server's own value must be among them.
    :param allow_system_prompt: whether a request may say what the model is told first (``system``), in place of what
        the prompt class says.
    :param token_sampler: chooses the tokens of the model's answers, in place of the built-in sampler.
    :param seed: seeds the sequence of the answers' seeds, 0 to 2**63 - 1; None is random.
    :param max_queue_wait: seconds that a request waits for a slot before it gets 503.
    :param max_answer: seconds that an answer may take; it is then ended with finish reason ``length``.
    :param body_timeout: seconds that a request's body may take to arrive; one more for each 64 KiB beyond 1 MiB.
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
    :param request_handler: chatstream's, superseded by ``conversation_store``: nothing but None is taken.
    :param identify_user: a coroutine function of the request that gives the name by which the app knows the user, who
        then finds the same conversations in every session of theirs; None for one who is known by the session only. It
        may raise what the request is to be answered with (``web.HTTPUnauthorized``).
    :param allow_metrics: says who may read /metrics; by default who asks from this machine, and not through a proxy.
    :param on_feedback_received: called as ``on_feedback_received(request, feedback)`` with each
        :class:`~aiochatstream.Feedback` of /set_feedback; a :class:`FeedbackFile` writes it down.
    :param num_gpus: of how many GPUs /get_resource_usage tells, 0 or more; None is all that torch sees.
    :param name: what /get_load calls this worker.
    :param namespace: keeps the conversations and roles of several ChatStreams apart that share an app's sessions; the
        same in all worker processes. Empty, or 1 to 64 of A-Z a-z 0-9 - _.
    :param client_roles: who may call what; see :class:`~aiochatstream.web.auth.roles.Roles`. None: one
        role for all browsers, which may call all but get_prompt and get_resource_usage.
    :param allowed_hosts: the host names by which this server may be called, each as ``chat.example.com`` or
        ``*.example.com``; addresses, localhost and the machine's own name always may. None: any name, but none more
        on connections to a loopback address. A refusal names what to add. See
        :class:`~aiochatstream.web.auth.allowed_hosts.AllowedHosts`.
    :param allowed_origins: other origins whose pages may call this, each as ``https://app.example``.
        :meth:`append_apis` does what CORS takes; who mounts :meth:`routes` does it oneself.
    :param web_ui_params: texts and colours of the page, see :class:`~aiochatstream.web.page_config.WebUiParams`.
    :param locale: ``en`` or ``ja``: what the log's lines for people are written in (a model that cannot be loaded,
        answers that are stopped at shutdown). Errors for clients and programs are English.
    :param logger: for the lines on loading, answers and shutdown; by default ``aiochatstream.chat``. All others go to
        loggers below ``aiochatstream``, too.

    Raises TypeError for a wrong kind of argument, ValueError for one out of its range, and OSError where ``record``
    cannot be written to.
    """

    def __init__(
        self,
        *,
        num_of_concurrent_executions: int = 2,
        max_queue_size: int = 5,
        model: Any = None,
        tokenizer: Any = None,
        engine: Engine | TextFunction | None = None,
        use_mock_response: bool = False,
        mock_params: dict[str, Any] | None = None,
        record: str | os.PathLike[str] | None = None,
        probe_mode_enabled: bool = False,
        device: Any = None,
        chat_prompt_clazz: type[AbstractChatPrompt] | Callable[[Any], type[AbstractChatPrompt]] = ChatPrompt,
        add_special_tokens: bool | None = None,
        max_new_tokens: int = 256,
        context_len: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        repetition_penalty: float = 1.0,
        repetition_penalty_method: Literal["multiplicative", "subtractive"] = "multiplicative",
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        no_repeat_ngram_size: int = 0,
        logit_bias: Mapping[int, float] | None = None,
        param_limits: ParamLimits | Mapping[str, Sequence[float]] | None = None,
        allow_system_prompt: bool = False,
        token_sampler: TokenSampler | None = None,
        seed: int | None = None,
        max_queue_wait: float = 60.0,
        max_answer: float = 300.0,
        body_timeout: float = 30.0,
        write_timeout: float = 30.0,
        shutdown_timeout: float = 20.0,
        max_request_bytes: int = 1 << 20,
        wire_format: WireFormat = "text",
        overload_status: int | None = None,
        too_many_request_as_http_error: bool = False,
        conversation_store: ConversationStore | None = None,
        request_handler: None = None,
        identify_user: Callable[[web.Request], Awaitable[str | None]] | None = None,
        allow_metrics: Callable[[web.Request], bool] = is_local_request,
        on_feedback_received: FeedbackCallback | None = None,
        num_gpus: int | None = None,
        name: str = "node:0",
        namespace: str = "",
        client_roles: Mapping[str, Any] | None = None,
        allowed_hosts: Collection[str] | None = None,
        allowed_origins: Collection[str] = (),
        web_ui_params: Mapping[str, Any] | None = None,
        locale: Locale = "en",
        logger: logging.Logger | None = None,
    ) -> None:
        prompts = prompt_class_of(chat_prompt_clazz, add_special_tokens)
        if request_handler is not None:
            raise TypeError("request_handler: a ConversationStore takes its place; give conversation_store.")
        if logger is not None and not isinstance(logger, logging.Logger):
            raise TypeError(f"logger: must be a logging.Logger, not {logger!r}.")
        if use_mock_response:
            if engine is not None:
                raise TypeError("use_mock_response: takes the place of engine; give one or the other.")
            engine, model, tokenizer = ScriptedEngine.from_mock_params(mock_params), None, None
        capacity = Capacity(num_of_concurrent_executions=num_of_concurrent_executions, max_queue_size=max_queue_size)
        status: Any = choose_overload_status(overload_status, too_many_request_as_http_error)
        limits = Limits(
            context_len=context_len,
            max_queue_wait=max_queue_wait,
            max_answer=max_answer,
            body_timeout=body_timeout,
            write_timeout=write_timeout,
            shutdown_timeout=shutdown_timeout,
            max_request_bytes=max_request_bytes,
            wire_format=wire_format,
            overload_status=status,
        )
        biases: Any = {} if logit_bias is None else logit_bias
        params = GenerationParams(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=0 if top_k is None else top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repetition_penalty=repetition_penalty,
            repetition_penalty_method=repetition_penalty_method,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            logit_bias=biases,
            seed=0 if seed is None else seed,
        )
        longest = context_len or DEFAULT_CONTEXT_LEN
        if longest <= max_new_tokens and (engine is None or context_len is not None):
            raise ValueError(f"context_len: must be above max_new_tokens ({max_new_tokens}), not {longest}.")
        answering = engine_of(engine, model, tokenizer, device, token_sampler)
        if record is not None or probe_mode_enabled:
            answering = RecordingEngine(answering, PROBE_FOLDER if record is None else record)
        if num_gpus is not None and (not isinstance(num_gpus, int) or num_gpus < 0):
            raise ValueError(f"num_gpus: must be a whole number from 0, or None, not {num_gpus!r}.")
        if not isinstance(namespace, str) or not re.fullmatch("[A-Za-z0-9_-]{0,64}", namespace):
            raise ValueError(f"namespace: must be empty or 1 to 64 of A-Z a-z 0-9 - _, not {namespace!r}.")
        super().__init__(
            RuntimeConfig(
                engine=answering,
                prompt_class_of=prompts,
                params=params,
                capacity=capacity,
                limits=limits,
                param_limits=ParamLimits.of(param_limits, params),
                seed=seed,
                locale=locale,
                logger=logging.getLogger("aiochatstream.chat") if logger is None else logger,
            ),
            endpoints=routes.ENDPOINTS,
            name=name,
            namespace=namespace,
            client_roles=client_roles,
            allowed_hosts=allowed_hosts,
            allowed_origins=allowed_origins,
            allow_metrics=allow_metrics,
            allow_system_prompt=allow_system_prompt,
            conversation_store=conversation_store,
            identify_user=identify_user,
            on_feedback_received=on_feedback_received,
            web_ui_params=web_ui_params,
            num_gpus=num_gpus,
        )

    def __repr__(self) -> str:
        return f"<ChatStream {self.name} {self.state} {self.admission!r}>"

    def setup(self, app: web.Application) -> None:
        """Let ``app`` own the start-up and clean-up. Sessions must be set up in ``app`` or in its parent.

        Once or more often for one app. Raises RuntimeError for a second app.
        """
        self._live_in(app, sessions=True)

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

        :param options: exactly one of ``{"include": [API names]}``, ``{"exclude": [API names]}`` and ``{"all": True}``,
            and, where it is not given to the constructor, ``"web_ui_params": {...}``.

        Raises ValueError for other options.
        """
        chosen = routes.select_routes(self, options)
        if "web_ui_params" in options:
            self.page = Page(options["web_ui_params"])
        self.setup(app)
        added = app.add_routes(chosen)
        if self.allowed_origins:
            cors.allow_origins(app, added, self.allowed_origins)

    def setup_openai(
        self,
        app: web.Application,
        prefix: str = "/v1",
        api_keys: Sequence[str] | os.PathLike[str] | ApiKeys | None = None,
        *,
        model_name: str | None = None,
    ) -> None:
        """Add OpenAI's API to ``app``, with CORS for ``allowed_origins``, and let it own the start-up and clean-up.

        It shares engine, slots and queue with the other endpoints, but knows neither sessions nor roles. An app with
        those, too, calls :meth:`setup` beside it. Unknown paths below a prefix are refused in OpenAI's shape, too.

        :param prefix: before each path, as clients have it in their base URL.
        :param api_keys: who says one of them may call: a list, or the path of a file with a key a line; or
            :class:`~aiochatstream.web.openai.keys.ApiKeys` of these. None: everyone.
        :param model_name: what clients call the model; None is its own name.

        Raises ValueError for other values, and OSError for a file that cannot be read.
        """
        if any(resource.canonical == f"{prefix}/models" for resource in app.router.resources()):
            raise ValueError(f"prefix: {prefix}/models is there already; each model takes a prefix of its own.")
        context = EndpointContext(api_keys if isinstance(api_keys, ApiKeys) else ApiKeys(api_keys), model_name)
        added = app.add_routes(mount(openai_routes.ENDPOINTS.values(), self, prefix, OPENAI, context=context))
        app.middlewares.append(openai_errors.openai_error_middleware(added[0]))
        self._live_in(app, sessions=False)
        if self.allowed_origins:
            cors.allow_origins(
                app, added, self.allowed_origins, allow_headers="*", expose_headers=openai_errors.EXPOSED_HEADERS
            )

    def append_middlewares(self, app: web.Application, opts: Mapping[str, Any] | None = None) -> None:
        """Give ``app`` sessions, unless it has some.

        :param opts: ``{"session_storage": a storage of aiohttp-session}``; a :class:`MemoryStorage` by default.

        Raises ValueError for other options.
        """
        storage = app_binding.storage_option({} if opts is None else opts)
        if not app_binding.has_sessions(app):
            aiohttp_session.setup(app, storage)

    def start_queue_worker(self) -> Awaitable[None]:
        """chatstream's name, superseded by :meth:`setup`: does nothing, and may be awaited."""
        return _Nothing()

    # for routes of an app's own: each with the errors and the checks of the mounted one
    handle_stop_request = handlers.stop
    handle_clear_context_request = handlers.clear_context
    handle_history_request = history.history
    handle_delete_message_request = history.delete_message
    handle_export_conversation_request = history.export_conversation
    handle_import_conversation_request = history.import_conversation
    handle_commit_request = history.commit
    handle_get_prompt_request = inspection.get_prompt
    handle_set_feedback_request = feedback.set_feedback
    handle_set_generation_params_request = generation_params.set_generation_params
    handle_get_generation_params_request = generation_params.get_generation_params
    handle_get_load_request = inspection.get_load
    handle_get_resource_usage_request = inspection.get_resource_usage
    handle_healthz_request = inspection.healthz
    handle_readyz_request = inspection.readyz
    handle_metrics_request = inspection.metrics
    handle_webui_index_request = page.webui_index
    handle_openapi_request = documents.openapi
    handle_docs_request = documents.docs

    async def handle_chat_stream_request(
        self,
        request: web.Request,
        request_body: dict[str, Any] | bytes | None = None,
        callback: Callback | None = None,
    ) -> web.StreamResponse:
        """Answer ``POST /chat_stream``: what the route's handler of an app calls.

        :param request_body: what the body says, from a handler that has read it: as a dict or as it came; validated as
            the body itself would be.
        :param callback: called as ``callback(request, message)``, once, when the request is over. The message is
            ``success`` (also for an answer that was stopped on request), ``client_disconnected_before_streaming`` (no
            text was sent), ``client_disconnected_while_streaming``, or begins with ``unknown_error_occurred`` and goes
            on to say why, for refusals too. A plain function runs on the event loop and should be quick; a coroutine
            function may take its time. What it raises is logged.
        """
        return await handlers.chat_stream(self, request, request_body, callback)

    def _live_in(self, app: web.Application, *, sessions: bool) -> None:
        if self.app_binding.bind(app, sessions=sessions):
            app.cleanup_ctx.append(self._run_in)
            app.on_shutdown.append(self._on_shutdown)

    async def _run_in(self, app: web.Application) -> AsyncIterator[None]:
        self.app_binding.check_startup(app)
        await self._start()
        self.disconnects = DisconnectWatcher()
        async with self.callbacks, self.disconnects:
            yield
        self._end()

    async def _on_shutdown(self, app: web.Application) -> None:
        self.uploads.refuse(
            Draining("The server is shutting down and accepts no new requests.")
        )  # nothing more of them is read
        await self._shut_down()
        await self.active_requests.close()


class _Nothing:
    """Awaitable, and no warning where it is not awaited."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()
