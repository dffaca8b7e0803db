"""ChatStream: one object that connects queue, prompts, engine and sessions, and belongs to an aiohttp application."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

from aiohttp import web

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.store import ConversationStore
from aiochatstream.engine_choice import PromptClassOf, choose_engine, choose_prompt_class
from aiochatstream.engines import AsyncEngine, AsyncTextFunction, Engine, TextFunction
from aiochatstream.errors import Draining
from aiochatstream.moved_options import explain_moved_options
from aiochatstream.params import (
    ANSWER_PARAMS,
    DEFAULT_CONTEXT_LEN,
    Capacity,
    GenerationParams,
    Limits,
    ParamLimits,
    WireFormat,
)
from aiochatstream.prompts import AbstractChatPrompt, ChatPrompt
from aiochatstream.runtime.served_model import RuntimeConfig
from aiochatstream.texts import Locale
from aiochatstream.validation import alternatives
from aiochatstream.web import routes
from aiochatstream.web.auth import cors
from aiochatstream.web.auth.addresses import is_local_request
from aiochatstream.web.endpoint import BoundHandler
from aiochatstream.web.endpoints import chat
from aiochatstream.web.feedback import FeedbackCallback
from aiochatstream.web.openai import routes as openai_routes
from aiochatstream.web.openai.endpoint_context import EndpointContext
from aiochatstream.web.openai.keys import ApiKeys
from aiochatstream.web.server import Server
from aiochatstream.web.streaming.callbacks import CONVERSATION, Callback
from aiochatstream.web.streaming.disconnects import DisconnectWatcher

COMPAT_FORMATS = "; chatstream's formats are options of aiochatstream.compat.ChatStream"


class ChatStream(Server):
    """A streaming chat with one model, for many users at once.

    Create it with a model, :meth:`setup` it in an aiohttp application that has aiohttp-session, and call
    :meth:`handle_chat_stream_request` in a route, or add all endpoints with :meth:`add_endpoints`::

        chat_stream = ChatStream(model=model, tokenizer=tokenizer, params=GenerationParams(temperature=0.2))
        chat_stream.add_endpoints(app)

    A program without an application uses it in an ``async with``.

    :param num_of_concurrent_executions: number of answers that are generated concurrently, 1 to 1024, and up to 100000
        with an asynchronous engine. None is 2, or the capacity that an asynchronous engine has of its own.
    :param max_queue_size: number of requests that may wait for a slot, 0 to 100000; further ones get 503.
    :param model: a loaded HuggingFace causal language model, or a function (also a functools.partial) that loads one.
        A function is called in a thread when the application starts; until it returns, requests get 503 ``starting``.
    :param tokenizer: the model's tokenizer, or a function that loads it.
    :param device: device of the model (a torch device or its name); None leaves the model on its current device.
    :param chat_prompt_clazz: the class that builds the prompt, a subclass of :class:`AbstractChatPrompt`; or a function
        that receives the loaded tokenizer and returns the class, such as ``ChatPrompt.for_model``.
    :param engine: replaces model, tokenizer and device: an :class:`Engine`, an :class:`AsyncEngine`, or a generator
        function ``f(messages, params)``, blocking or async, that yields text. ``ScriptedEngine()`` answers without a
        model, ``RecordingEngine(engine, folder)`` records the answers of another engine, and
        ``TransformersEngine(...)`` has further options of models.
    :param params: :class:`GenerationParams` of answers, unless the request or its user sets others. Sampling parameters
        that it does not set have the values in the model's generation_config, if there are any.
    :param param_limits: values that requests and users may set, if they are to be fewer than the full ranges:
        ``ParamLimits(temperature=(0, 1), top_k=(1, 500), thinking=("off", "low"))``, or a dict of the same content.
        They must include the values in ``params``.
    :param limits: :class:`Limits` of time and size; None is ``Limits()``.
    :param allow_system_prompt: allow requests to set the system prompt (``system``).
    :param seed: seed of the sequence from which answers get their own seeds, 0 to 2**63 - 1; None is random.
    :param wire_format: format of answers if the request's headers do not choose one: ``text``, ``sse`` or ``json``.
    :param conversation_store: storage of conversations. None stores them in the cookie if the application's sessions
        are encrypted cookies, and in the memory of this process otherwise.
    :param identify_user: coroutine function that receives the request and returns the application's name of the user,
        who then finds the same conversations in all sessions; None identifies the user by the session. It may raise an
        HTTP error to refuse the request (``web.HTTPUnauthorized``).
    :param client_roles: endpoints that each role may call; see :class:`~aiochatstream.web.auth.roles.Roles`. None is
        one role for all browsers, which may call everything except get_prompt and get_resource_usage.
    :param allowed_hosts: host names that clients may use for this server, for example ``chat.example.com`` or
        ``*.example.com``; addresses, localhost and the machine's own name are always allowed. None allows any name,
        except on connections to a loopback address. See :class:`~aiochatstream.web.auth.allowed_hosts.AllowedHosts`.
    :param allowed_origins: other origins whose pages may call this server, for example ``https://app.example``.
        :meth:`add_endpoints` configures CORS for them; with :meth:`routes`, the application does.
    :param allow_metrics: predicate that allows a request to read /metrics; by default only direct requests from this
        machine.
    :param on_feedback: called as ``on_feedback(request, feedback)`` with each :class:`~aiochatstream.Feedback` of
        /set_feedback; a :class:`FeedbackFile` appends it to a file.
    :param web_ui_params: texts and colours of the page; see :class:`~aiochatstream.web.page_config.WebUiParams`.
    :param name: name of this worker in /get_load.
    :param namespace: separates the conversations and roles of several ChatStreams that share an application's
        sessions; the same in all worker processes. Empty, or 1 to 64 of A-Z a-z 0-9 - _.
    :param locale: language of log messages for people, ``en`` or ``ja``. Errors are in English.
    :param logger: logger of messages about loading, answers and shutdown; by default ``aiochatstream.chat``. Others use
        loggers below ``aiochatstream``.

    Raises TypeError for an argument of the wrong type, and ValueError for one out of range, with its name.
    """

    wire_formats: ClassVar[Sequence[WireFormat]] = ("text", "sse", "json")
    """Values of ``wire_format``. Headers can choose other formats."""

    @explain_moved_options
    def __init__(
        self,
        *,
        num_of_concurrent_executions: int | None = None,
        max_queue_size: int = 5,
        model: Any = None,
        tokenizer: Any = None,
        device: Any = None,
        chat_prompt_clazz: type[AbstractChatPrompt] | PromptClassOf = ChatPrompt,
        engine: Engine | AsyncEngine | TextFunction | AsyncTextFunction | None = None,
        params: GenerationParams | None = None,
        param_limits: ParamLimits | Mapping[str, Sequence[Any]] | None = None,
        limits: Limits | None = None,
        allow_system_prompt: bool = False,
        seed: int | None = None,
        wire_format: Literal["text", "sse", "json"] = "text",
        conversation_store: ConversationStore | None = None,
        identify_user: Callable[[web.Request], Awaitable[str | None]] | None = None,
        client_roles: Mapping[str, Any] | None = None,
        allowed_hosts: Collection[str] | None = None,
        allowed_origins: Collection[str] = (),
        allow_metrics: Callable[[web.Request], bool] = is_local_request,
        on_feedback: FeedbackCallback | None = None,
        web_ui_params: Mapping[str, Any] | None = None,
        name: str = "node:0",
        namespace: str = "",
        locale: Locale = "en",
        logger: logging.Logger | None = None,
    ) -> None:
        params = GenerationParams() if params is None else params
        limits = Limits() if limits is None else limits
        _check(params, limits, seed, logger)
        _check_lengths(params, limits, has_model=engine is None)
        if wire_format not in self.wire_formats:
            raise ValueError(
                f"wire_format: must be {alternatives(self.wire_formats)}, not {wire_format!r}"
                f"{COMPAT_FORMATS if wire_format in get_args(WireFormat) else ''}."
            )
        if not isinstance(namespace, str) or not re.fullmatch("[A-Za-z0-9_-]{0,64}", namespace):
            raise ValueError(f"namespace: must be empty or 1 to 64 of A-Z a-z 0-9 - _, not {namespace!r}.")
        super().__init__(
            RuntimeConfig(
                prompt_class_of=choose_prompt_class(chat_prompt_clazz),
                capacity=Capacity(
                    num_of_concurrent_executions=num_of_concurrent_executions, max_queue_size=max_queue_size
                ),
                params=params,
                limits=limits,
                param_limits=ParamLimits.of(param_limits, params),
                engine=choose_engine(engine, model, tokenizer, device),
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
            wire_format=wire_format,
            conversation_store=conversation_store,
            identify_user=identify_user,
            on_feedback=on_feedback,
            web_ui_params=web_ui_params,
        )

    def __repr__(self) -> str:
        return f"<ChatStream {self.name} {self.state} {self.admission!r}>"

    def setup(self, app: web.Application) -> None:
        """Register startup and cleanup in ``app``. Sessions must be set up in ``app`` or in its parent.

        Further calls for the same application have no effect. Raise RuntimeError for a second application.
        """
        self.bind(app, sessions=True)

    def routes(
        self, include: Collection[str] | None = None, exclude: Collection[str] | None = None, *, prefix: str = ""
    ) -> list[web.RouteDef]:
        """Return the routes of all endpoints, or of the selected ones, for ``app.add_routes``.

        :param prefix: prefix of each path, for example ``/support``: for two ChatStreams in one application.

        Raise ValueError for unknown names. The application itself configures CORS for ``allowed_origins``.
        """
        return routes.routes(self, include, exclude, prefix)

    def add_endpoints(
        self,
        app: web.Application,
        include: Collection[str] | None = None,
        exclude: Collection[str] | None = None,
        *,
        prefix: str = "",
    ) -> None:
        """Add :meth:`routes` to ``app``, with CORS for ``allowed_origins``, and :meth:`setup` in it.

        Raise ValueError for unknown names, and RuntimeError for a second application.
        """
        chosen = self.routes(include, exclude, prefix=prefix)
        self.setup(app)
        added = app.add_routes(chosen)
        if self.allowed_origins:
            cors.allow_origins(app, added, self.allowed_origins)

    def handler(self, endpoint: str) -> BoundHandler:
        """Return the aiohttp handler of an endpoint, for a route of the application's own.

        ::

            app.router.add_get("/conversation", chat_stream.handler("history"))

        Raise ValueError for an unknown name.
        """
        return routes.handler(self, endpoint)

    def setup_openai(
        self,
        app: web.Application,
        prefix: str = "/v1",
        api_keys: Sequence[str] | os.PathLike[str] | ApiKeys | None = None,
        *,
        model_name: str | None = None,
    ) -> None:
        """Add OpenAI's API to ``app``, with CORS for ``allowed_origins``, and register startup and cleanup.

        It shares engine, slots and queue with the other endpoints, but uses neither sessions nor roles. An application
        that also has the other endpoints calls :meth:`setup` or :meth:`add_endpoints` in addition. Unknown paths below
        the prefix get errors in OpenAI's format.

        :param prefix: prefix of each path, which clients have in their base URL.
        :param api_keys: keys that clients must send: a list, the path of a file with one key per line, or
            :class:`~aiochatstream.web.openai.keys.ApiKeys`. None allows all clients.
        :param model_name: name of the model for clients; None is the model's own name.

        Raise ValueError for other values, and OSError for a file that cannot be read.
        """
        keys = api_keys if isinstance(api_keys, ApiKeys) else ApiKeys(api_keys)
        if model_name is not None and not (isinstance(model_name, str) and model_name):
            raise ValueError(f"model_name: must be a non-empty string or None, not {model_name!r}.")
        openai_routes.setup(app, self, EndpointContext(keys, {model_name or "": self}, self), prefix)
        self.bind(app, sessions=False)

    async def handle_chat_stream_request(
        self,
        request: web.Request,
        request_body: dict[str, Any] | bytes | None = None,
        callback: Callback | None = None,
    ) -> web.StreamResponse:
        """Answer ``POST /chat_stream``, for a route of the application's own.

        :param request_body: content of the body if the caller has read it, as a dict or as bytes; validated in the
            same way as the body itself.
        :param callback: called once, as ``callback(request, message)``, when the request has ended. The message is
            ``success`` (also for an answer that its user stopped), ``client_disconnected_before_streaming`` (no text
            was sent), ``client_disconnected_while_streaming``, or ``unknown_error_occurred`` with the reason, also for
            refused requests. A plain function runs on the event loop and should be fast; a coroutine function may be
            slow. Exceptions are logged. :meth:`conversation_of` returns the conversation.
        """
        return await chat.chat_stream(self, request, request_body, callback)

    def conversation_of(self, request: web.Request) -> Conversation | None:
        """Return the conversation as saved after the answer to ``request``, for the callback of
        :meth:`handle_chat_stream_request`; None if no answer has begun.
        """
        return request.get(CONVERSATION)

    def bind(self, app: web.Application, *, sessions: bool) -> None:
        """Register startup and cleanup in ``app``: part of :meth:`setup` and :meth:`setup_openai`.

        :param sessions: whether the endpoints there need sessions.

        Raise RuntimeError for a second application.
        """
        if self.app_binding.bind(app, sessions=sessions):
            app.cleanup_ctx.append(self._run_in)
            app.on_shutdown.append(self._on_shutdown)

    async def _run_in(self, app: web.Application) -> AsyncIterator[None]:
        self.app_binding.check_startup(app)
        await self._start()
        self.disconnects = DisconnectWatcher()
        async with self.callbacks, self.disconnects:
            yield
        await self._end()

    async def _on_shutdown(self, app: web.Application) -> None:
        self.uploads.refuse(Draining("The server is shutting down and accepts no new requests."))
        await self.shut_down()
        await self.active_requests.close()


def _check(params: GenerationParams, limits: Limits, seed: int | None, logger: logging.Logger | None) -> None:
    """Raise TypeError or ValueError for an invalid argument of ChatStream."""
    for name, value, kind in (("params", params, GenerationParams), ("limits", limits, Limits)):
        if not isinstance(value, kind):
            raise TypeError(f"{name}: must be {kind.__name__}(...), not {value!r}.")
    defaults = GenerationParams()
    for name in ANSWER_PARAMS:
        if getattr(params, name) != getattr(defaults, name):
            raise ValueError(f"params.{name}: must be absent; it is specified for each answer.")
    if seed is not None:
        GenerationParams(seed=seed)  # the same range
    if logger is not None and not isinstance(logger, logging.Logger):
        raise TypeError(f"logger: must be a logging.Logger, not {logger!r}.")


def _check_lengths(params: GenerationParams, limits: Limits, *, has_model: bool) -> None:
    """Raise ValueError if prompt and answer cannot share the context, as far as this is known before loading.

    :param has_model: True if the default of ``context_len`` applies.
    """
    if limits.fill_context:
        if "max_new_tokens" in params.model_fields_set:
            raise ValueError("fill_context: must be False if params specifies max_new_tokens.")
        return
    context_len = limits.context_len or (DEFAULT_CONTEXT_LEN if has_model else None)
    if isinstance(context_len, int) and context_len <= params.max_new_tokens:
        raise ValueError(f"context_len: must be above max_new_tokens ({params.max_new_tokens}), not {context_len}.")
