"""ChatStream with the constructor and the methods of chatstream 0.3.0."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping
from typing import Any, ClassVar, cast

import aiohttp_session
from aiohttp import web
from aiohttp_session import AbstractStorage

from aiochatstream.chat_stream import ChatStream as BaseChatStream
from aiochatstream.compat.presets import ChatPrompt
from aiochatstream.compat.prompts import AbstractChatPrompt as CompatChatPrompt
from aiochatstream.compat.request_handlers import AbstractRequestHandler
from aiochatstream.compat.token_samplers import TokenSamplerHft, TokenSamplerIsok
from aiochatstream.engine_choice import choose_engine, transformers_engine
from aiochatstream.engines import Engine, RecordingEngine, ScriptedEngine, TokenSampler
from aiochatstream.params import GenerationParams, Limits, ParamOverrides, WireFormat
from aiochatstream.prompts import AbstractChatPrompt
from aiochatstream.sessions import MemoryStorage
from aiochatstream.web.app_binding import has_sessions
from aiochatstream.web.auth.access import check_access
from aiochatstream.web.endpoint import BoundHandler, bind
from aiochatstream.web.endpoints import chat, docs, feedback, generation_params, history, page, status
from aiochatstream.web.errors import handle_errors
from aiochatstream.web.page_config import Page
from aiochatstream.web.server import Server
from aiochatstream.web.streaming.callbacks import Callback

PROBE_FOLDER = "probe"

MOCK_PARAMS = ("type", "initial_wait_sec", "time_per_token_sec", "answers")

ENDPOINT_OPTIONS = ("include", "exclude", "all", "web_ui_params")


class ChatStream(BaseChatStream):
    """:class:`aiochatstream.ChatStream` with chatstream 0.3.0's options, methods and default format.

    :class:`aiochatstream.ChatStream` describes all other options. The options from ``max_new_tokens`` to
    ``repetition_penalty_method`` override the fields of ``params``, and ``context_len`` the field of ``limits``; None
    leaves the field unchanged.

    :param token_sampler: :class:`TokenSampler` in place of the built-in sampler; or :class:`TokenSamplerHft` or
        :class:`TokenSamplerIsok`, which are the built-in sampler, the latter without top_p.
    :param num_gpus: number of GPUs that /get_resource_usage reports, 0 or more; None is all.
    :param too_many_request_as_http_error: True is status 429 for a full queue. False changes nothing: the status is
        503, where chatstream's is 200.
    :param use_mock_response: answer without a model, by a :class:`ScriptedEngine`. The model and the tokenizer are then
        neither required nor loaded.
    :param mock_params: the arguments of :class:`ScriptedEngine`, as a dict; no effect without ``use_mock_response``.
    :param add_special_tokens: let the tokenizer add its special tokens (usually a BOS) to the prompt's text; None is
        the prompt class's own setting. No effect with a chat template, which contains them.
    :param request_handler: answers the requests to /chat_stream; None is :class:`SimpleSessionRequestHandler`.
    :param probe_mode_enabled: record the answers in the folder ``probe``.
    :param wire_format: ``chatstream`` (the whole answer so far and an end token in each chunk), ``chatstream-older``
        (without the token), ``text``, ``sse`` or ``json``.

    Raises TypeError and ValueError as :class:`aiochatstream.ChatStream`, and OSError if answers cannot be recorded.
    """

    wire_formats: ClassVar = ("text", "sse", "json", "chatstream", "chatstream-older")

    def __init__(
        self,
        *,
        model: Any = None,
        tokenizer: Any = None,
        token_sampler: TokenSampler | TokenSamplerHft | TokenSamplerIsok | None = None,
        num_gpus: int | None = None,
        device: Any = None,
        too_many_request_as_http_error: bool = False,
        use_mock_response: bool = False,
        mock_params: Mapping[str, Any] | None = None,
        chat_prompt_clazz: type[AbstractChatPrompt] | Callable[[Any], type[AbstractChatPrompt]] = ChatPrompt,
        max_new_tokens: int | None = None,
        context_len: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        repetition_penalty_method: str | None = None,
        add_special_tokens: bool | None = None,
        request_handler: AbstractRequestHandler | None = None,
        probe_mode_enabled: bool = False,
        wire_format: WireFormat = "chatstream",
        **options: Any,
    ) -> None:
        if not isinstance(request_handler, AbstractRequestHandler | None):
            raise TypeError(f"request_handler: must be an AbstractRequestHandler or None, not {request_handler!r}.")
        self._uses_top_p = not isinstance(token_sampler, TokenSamplerIsok)
        if isinstance(token_sampler, TokenSamplerHft | TokenSamplerIsok):
            token_sampler = None
        if num_gpus is not None and (not isinstance(num_gpus, int) or num_gpus < 0):
            raise ValueError(f"num_gpus: must be a whole number from 0, or None, not {num_gpus!r}.")
        options["params"] = _override(
            options.get("params"),
            GenerationParams,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            repetition_penalty_method=repetition_penalty_method,
        )
        options["limits"] = _override(
            options.get("limits"),
            Limits,
            context_len=context_len,
            overload_status=_overload_status(options.get("limits"), too_many_request_as_http_error),
        )
        options["chat_prompt_clazz"] = _set_special_tokens(chat_prompt_clazz, add_special_tokens)
        engine = options.pop("engine", None)
        if use_mock_response:
            if engine is not None:
                raise TypeError("use_mock_response: must be False if engine is specified.")
            engine, model, tokenizer = _mock_engine(mock_params), None, None
        elif token_sampler is not None:
            if engine is not None:
                raise TypeError("token_sampler: must be absent if engine is specified; specify it in the engine.")
            engine = transformers_engine(model, tokenizer, device, token_sampler=token_sampler)
            model = tokenizer = None
        if probe_mode_enabled:
            engine = RecordingEngine(cast(Engine, choose_engine(engine, model, tokenizer, device)), PROBE_FOLDER)
            model = tokenizer = None
        options |= {"engine": engine, "model": model, "tokenizer": tokenizer, "device": device}
        super().__init__(wire_format=wire_format, **options)  # type: ignore[arg-type]
        self.num_gpus = num_gpus
        self._request_handler = request_handler
        if request_handler is not None:
            request_handler.server = self

    def override(self, *overrides: ParamOverrides | None, **options: Any) -> GenerationParams:
        """Return :meth:`aiochatstream.ChatStream.override`, without top_p for :class:`TokenSamplerIsok`."""
        params = super().override(*overrides, **options)
        return params if self._uses_top_p else params.model_copy(update={"top_p": 1.0})

    async def handle_chat_stream_request(
        self,
        request: web.Request,
        request_body: dict[str, Any] | bytes | None = None,
        callback: Callback | None = None,
    ) -> web.StreamResponse:
        """Answer ``POST /chat_stream``: :meth:`aiochatstream.ChatStream.handle_chat_stream_request`, by the request
        handler.
        """
        if self._request_handler is None:
            return await super().handle_chat_stream_request(request, request_body, callback)
        return await _process_request(self, request, self._request_handler, request_body, callback)

    def chat_prompt_of(self, request: web.Request) -> CompatChatPrompt | None:
        """Return the prompt of the conversation after the answer to ``request``, for the callback of
        :meth:`handle_chat_stream_request`; None if no answer has begun.

        Raise TypeError if the prompt class is not a subclass of :class:`aiochatstream.compat.AbstractChatPrompt`.
        """
        conversation = self.conversation_of(request)
        if conversation is None:
            return None
        prompt = self._prompt_class()
        if not isinstance(prompt, CompatChatPrompt):
            raise TypeError(f"chat_prompt_clazz: must be a prompt class of aiochatstream.compat, not {type(prompt)!r}.")
        prompt.conversation, prompt.tokenizer, prompt.is_open = conversation, self.engine.tokenizer, False
        return prompt

    def routes(
        self, include: Collection[str] | None = None, exclude: Collection[str] | None = None, *, prefix: str = ""
    ) -> list[web.RouteDef]:
        """Return :meth:`aiochatstream.ChatStream.routes`, with the request handler for /chat_stream."""
        return [
            web.RouteDef(route.method, route.path, self._with_request_handler(route.handler), route.kwargs)
            for route in super().routes(include, exclude, prefix=prefix)
        ]

    def handler(self, endpoint: str) -> BoundHandler:
        """Return :meth:`aiochatstream.ChatStream.handler`, the request handler for ``chat_stream``."""
        handler: BoundHandler = self._with_request_handler(super().handler(endpoint))
        return handler

    def _with_request_handler(self, handler: Any) -> Any:
        if self._request_handler is None or handler.endpoint.name != "chat_stream":
            return handler
        return bind(handler.endpoint, _process_request, self, handler.tag, request_handler=self._request_handler)

    def append_apis(self, app: web.Application, options: Mapping[str, Any]) -> None:
        """Add endpoints to ``app``: :meth:`add_endpoints` with chatstream's options.

        :param options: exactly one of ``{"include": [names]}``, ``{"exclude": [names]}`` and ``{"all": True}``, and
            optionally ``"web_ui_params": {...}`` in place of the constructor's.

        Raise ValueError for other options.
        """
        if not isinstance(options, Mapping):
            raise ValueError(f"options: must be a dict, not {options!r}.")
        for key in options:
            if key not in ENDPOINT_OPTIONS:
                raise ValueError(f"options: unknown key {key!r}; choose from {', '.join(ENDPOINT_OPTIONS)}.")
        choices = [key for key in options if key != "web_ui_params"]
        if len(choices) != 1:
            present = " and ".join(map(repr, choices)) or "none"
            raise ValueError(f"options: must have exactly one of 'include', 'exclude' and 'all', not {present}.")
        if options.get("all", True) is not True:
            raise ValueError(f"options: 'all' must be True, not {options['all']!r}.")
        chosen = {} if choices == ["all"] else {choices[0]: options[choices[0]]}
        if None in chosen.values():
            raise ValueError(f"{choices[0]}: must be a list of endpoint names, not None.")
        self.routes(**chosen)  # raises before anything has changed
        if "web_ui_params" in options:
            self.page = Page(options["web_ui_params"])
        self.add_endpoints(app, **chosen)

    def append_middlewares(self, app: web.Application, opts: Mapping[str, Any] | None = None) -> None:
        """Set up sessions in ``app``, unless it already has sessions.

        :param opts: ``{"session_storage": a storage of aiohttp-session}``; a :class:`MemoryStorage` by default.

        Raise ValueError for other options.
        """
        storage = _session_storage({} if opts is None else opts)
        if not has_sessions(app):
            aiohttp_session.setup(app, storage)

    def start_queue_worker(self) -> Awaitable[None]:
        """Do nothing: :meth:`setup` registers startup. The result may be awaited."""
        return _Nothing()

    handle_stop_request = chat.stop
    handle_clear_context_request = chat.clear_context
    handle_history_request = history.history
    handle_delete_message_request = history.delete_message
    handle_export_conversation_request = history.export_conversation
    handle_import_conversation_request = history.import_conversation
    handle_commit_request = history.commit
    handle_get_prompt_request = status.get_prompt
    handle_set_feedback_request = feedback.set_feedback
    handle_set_generation_params_request = generation_params.set_generation_params
    handle_get_generation_params_request = generation_params.get_generation_params
    handle_get_load_request = status.get_load
    handle_get_resource_usage_request = status.get_resource_usage
    handle_healthz_request = status.healthz
    handle_readyz_request = status.readyz
    handle_metrics_request = status.metrics
    handle_webui_index_request = page.webui_index
    handle_openapi_request = docs.openapi
    handle_docs_request = docs.docs


@handle_errors
async def _process_request(
    server: Server,
    request: web.Request,
    request_handler: AbstractRequestHandler,
    request_body: dict[str, Any] | bytes | None = None,
    callback: Callback | None = None,
) -> web.StreamResponse:
    """Answer ``POST /chat_stream`` by ``request_handler``."""
    await check_access(server, request, "chat_stream")
    return await request_handler.process_request(request, request_body, callback)


class _Nothing:
    """Awaitable without a result; not awaiting it causes no warning."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


def _override(value: Any, model: type[GenerationParams] | type[Limits], **fields: Any) -> Any:
    """Return ``value`` (None is ``model()``) with the fields that are not None. An object of another type is unchanged:
    the constructor refuses it.
    """
    value = model() if value is None else value
    if not isinstance(value, model):
        return value
    specified = {name: getattr(value, name) for name in value.model_fields_set}  # others may depend on the model
    return type(value)(**specified | {name: field for name, field in fields.items() if field is not None})


def _overload_status(limits: Limits | None, too_many_request_as_http_error: bool) -> int | None:
    """Return 429 for chatstream's option, and None to keep the status of ``limits``."""
    if not isinstance(too_many_request_as_http_error, bool):
        raise ValueError(
            f"too_many_request_as_http_error: must be true or false, not {too_many_request_as_http_error!r}."
        )
    if not too_many_request_as_http_error:
        return None
    if isinstance(limits, Limits) and "overload_status" in limits.model_fields_set and limits.overload_status != 429:
        raise ValueError(
            f"too_many_request_as_http_error: means overload_status=429, but overload_status is "
            f"{limits.overload_status}; specify only one."
        )
    return 429


def _set_special_tokens(prompt_class: Any, add_special_tokens: bool | None) -> Any:
    """Return a prompt class, or the function that returns it, with the attribute ``add_special_tokens``."""
    if add_special_tokens is None:
        return prompt_class
    if not isinstance(add_special_tokens, bool):
        raise ValueError(f"add_special_tokens: must be True, False or None, not {add_special_tokens!r}.")
    if inspect.isclass(prompt_class) and issubclass(prompt_class, AbstractChatPrompt):
        return type(prompt_class.__name__, (prompt_class,), {"add_special_tokens": add_special_tokens})
    if callable(prompt_class) and not inspect.isclass(prompt_class):
        return lambda tokenizer: _set_special_tokens(prompt_class(tokenizer), add_special_tokens)
    return prompt_class  # the constructor refuses it


def _mock_engine(mock_params: Mapping[str, Any] | None) -> ScriptedEngine:
    """Return the engine of chatstream's ``mock_params``. Raise TypeError and ValueError that name the field."""
    if not isinstance(mock_params, Mapping | None):
        raise TypeError(f"mock_params: must be a dict, not {mock_params!r}.")
    for name in mock_params or ():
        if name not in MOCK_PARAMS:
            raise ValueError(f"mock_params: unknown key {name!r}; choose from {', '.join(MOCK_PARAMS)}.")
    try:
        return ScriptedEngine(**dict(mock_params or {}))
    except ValueError as error:
        raise ValueError(f"mock_params.{error}") from None


def _session_storage(opts: object) -> AbstractStorage:
    """Return the storage of the options of ``append_middlewares``. Raise ValueError for others."""
    if not isinstance(opts, Mapping) or not opts.keys() <= {"session_storage"}:
        raise ValueError("opts: must be a dict whose only key is 'session_storage'.")
    storage = opts.get("session_storage")
    if storage is None:
        return MemoryStorage()
    if not isinstance(storage, AbstractStorage):
        raise ValueError(f"session_storage: must be a storage of aiohttp-session, not {storage!r}.")
    return storage
