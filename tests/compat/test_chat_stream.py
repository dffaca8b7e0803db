"""chatstream 0.3.0's constructor and methods."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp_session import SimpleCookieStorage

from aiochatstream import (
    AbstractChatPrompt,
    Conversation,
    Delta,
    Engine,
    GenerationParams,
    Limits,
    MemoryConversationStore,
    MemoryStorage,
    Prompt,
    TokenSampler,
    TransformersEngine,
    compat,
)
from aiochatstream.compat import ChatStream
from aiochatstream.conversations.user import User
from aiochatstream.runtime.turn_request import TurnRequest
from aiochatstream.web.routes import ENDPOINTS
from aiochatstream.web.streaming.callbacks import CONVERSATION
from tests.engines.transformers.tiny_models import BYTES, tiny
from tests.helpers import Server, browser, echo, role_of, serving, until

GIB = 1 << 30

CONSTRUCTOR: dict[str, Any] = {
    "name": "node:0",
    "model": None,
    "tokenizer": None,
    "token_sampler": None,
    "num_gpus": None,
    "device": "cpu",
    "num_of_concurrent_executions": 2,
    "max_queue_size": 5,
    "too_many_request_as_http_error": False,
    "use_mock_response": True,
    "mock_params": {"type": "echo", "initial_wait_sec": 0, "time_per_token_sec": 0},
    "chat_prompt_clazz": compat.ChatPrompt,
    "max_new_tokens": 256,
    "context_len": 1024,
    "temperature": 1.0,
    "top_k": None,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "repetition_penalty_method": "multiplicative",
    "add_special_tokens": None,
    "request_handler": None,
    "logger": None,
    "locale": "en",
    "client_roles": None,
    "seed": 42,
    "probe_mode_enabled": False,
}
"""chatstream 0.3.0's keywords, for mock answers."""


async def test_the_constructor_of_chatstream_is_accepted(start: Any, client_of: Any) -> None:
    client = client_of(await start(ChatStream(**CONSTRUCTOR)))
    async with client.post(user_input="Hello there") as response:
        assert (await response.text()).split("<::EOS::>")[-2:] == ["Hello there", ""]


def test_options_of_chatstream_are_fields_of_params_and_limits() -> None:
    chat_stream = ChatStream(
        engine=echo,
        max_new_tokens=9,
        context_len=99,
        temperature=0.5,
        top_k=8,
        top_p=0.7,
        repetition_penalty=1.5,
        repetition_penalty_method="subtractive",
        too_many_request_as_http_error=True,
        params=GenerationParams(temperature=1.5, min_p=0.1),
        limits=Limits(max_answer=5),
        allow_system_prompt=True,
    )
    assert chat_stream.params == GenerationParams(
        max_new_tokens=9,
        temperature=0.5,
        top_k=8,
        top_p=0.7,
        repetition_penalty=1.5,
        repetition_penalty_method="subtractive",
        min_p=0.1,
    )
    assert chat_stream.limits == Limits(context_len=99, max_answer=5, overload_status=429)
    assert chat_stream.allow_system_prompt
    default = ChatStream(engine=echo)
    assert (default.params, default.limits, default.wire_format) == (GenerationParams(), Limits(), "chatstream")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": -0.1}, "temperature: must be a number from 0"),
        (
            {"repetition_penalty_method": "other"},
            "repetition_penalty_method: must be 'multiplicative' or 'subtractive'",
        ),
        ({"context_len": 256, "max_new_tokens": 256}, r"context_len: must be above max_new_tokens \(256\)"),
        ({"add_special_tokens": 1}, "add_special_tokens: must be True, False or None, not 1"),
        ({"num_gpus": -1}, "num_gpus: must be a whole number from 0, or None, not -1"),
        ({"wire_format": "xml"}, "wire_format: must be 'text', 'sse', 'json', 'chatstream' or 'chatstream-older', not"),
        ({"too_many_request_as_http_error": "yes"}, "too_many_request_as_http_error: must be true or false, not 'yes'"),
        (
            {"too_many_request_as_http_error": True, "limits": Limits(overload_status=503)},
            "too_many_request_as_http_error: means overload_status=429, but overload_status is 503",
        ),
    ],
)
def test_an_option_out_of_its_range_is_a_value_error_that_names_it(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        ChatStream(engine=echo, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "model: must be a loaded HuggingFace model or a function"),
        ({"model": object(), "token_sampler": object()}, "tokenizer: must be"),
        ({"engine": echo, "token_sampler": object()}, "token_sampler: must be absent if engine is specified"),
        ({"engine": echo, "use_mock_response": True}, "use_mock_response: must be False if engine is specified"),
        ({"engine": echo, "chat_prompt_clazz": dict, "add_special_tokens": True}, "chat_prompt_clazz: must be a sub"),
        ({"engine": echo, "min_p": 0.1}, "min_p: is part of params now"),
        ({"use_mock_response": True, "mock_params": ["round"]}, "mock_params: must be a dict"),
        ({"params": {"top_k": 5}, "temperature": 0.5}, r"params: must be GenerationParams\(...\), not {'top_k': 5}"),
        ({"limits": {}}, r"limits: must be Limits\(...\), not {}"),
        ({"limits": {}, "too_many_request_as_http_error": True}, r"limits: must be Limits\(...\), not {}"),
    ],
)
def test_an_argument_of_the_wrong_type_is_a_type_error_that_names_it(options: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=f"^{says}"):
        ChatStream(**options)


@pytest.mark.parametrize(
    ("mock_params", "says"),
    [
        ({"type": "square"}, "mock_params.type: must be 'round', 'echo' or 'long'"),
        ({"initial_wait_sec": -1}, "mock_params.initial_wait_sec: must be a number of seconds from 0 to 86400"),
        ({"speed": 3}, "mock_params: unknown key 'speed'; choose from type, initial_wait_sec"),
    ],
)
def test_wrong_mock_params_are_a_value_error_that_names_the_field(mock_params: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        ChatStream(use_mock_response=True, mock_params=mock_params)
    ChatStream(engine=echo, mock_params=mock_params)  # no effect without use_mock_response


async def test_mock_answers_need_no_model_and_do_not_load_one(start: Any, client_of: Any) -> None:
    loaded = threading.Event()
    chat_stream = ChatStream(
        model=loaded.set,
        tokenizer=loaded.set,
        device="cuda",
        use_mock_response=True,
        mock_params={"type": "round", "time_per_token_sec": 0, "answers": ["はい。", "No, thank you."]},
    )
    client = client_of(await start(chat_stream))
    answers = [await client.say("Tea?") for _ in range(3)]
    assert [answer["text"] for answer in answers] == ["はい。", "No, thank you.", "はい。"]
    assert [answer["finish_reason"] for answer in answers] == ["stop"] * 3
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [3, 3, 3]
    assert not loaded.is_set()


async def test_probe_mode_records_answers(
    start: Any, client_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    client = client_of(await start(ChatStream(engine=echo, probe_mode_enabled=True)))
    await client.say("Hello")
    assert os.listdir() == ["probe"]
    assert len(os.listdir("probe")) == 1


async def test_a_token_sampler_selects_the_tokens_and_probe_mode_records_them(
    start: Any, client_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Letter(TokenSampler):
        def sample(self, logits: Any, token_ids: Any, params: Any) -> list[int]:
            return [BYTES.convert_tokens_to_ids("a")] * len(token_ids)

    class Plain(AbstractChatPrompt):
        def create_prompt(self) -> str:
            return self.message

    monkeypatch.chdir(tmp_path)
    chat_stream = ChatStream(
        model=tiny(),
        tokenizer=BYTES,
        token_sampler=Letter(),
        probe_mode_enabled=True,
        chat_prompt_clazz=Plain,
        max_new_tokens=3,
    )
    assert (await client_of(await start(chat_stream)).say("hi"))["text"] == "aaa"
    assert len(os.listdir("probe")) == 1


@pytest.mark.parametrize(("option", "special_tokens"), [(None, 1), (True, 1), (False, 0)])
@pytest.mark.parametrize("as_function", [False, True])
async def test_add_special_tokens_overrides_the_prompt_class(
    option: bool | None, special_tokens: int, as_function: bool
) -> None:
    class Plain(AbstractChatPrompt):
        def create_prompt(self) -> str:
            return self.message

    chat_stream = ChatStream(
        engine=TransformersEngine(tiny(), BYTES),
        chat_prompt_clazz=(lambda tokenizer: Plain) if as_function else Plain,
        add_special_tokens=option,
        max_new_tokens=1,
    )
    async with chat_stream:
        turn = await chat_stream.begin_turn(User("me", MemoryConversationStore()), "main", TurnRequest("Hello"))
        assert await turn.wait_ended()
        assert turn.usage.prompt_tokens == len("Hello") + special_tokens


class TwoGpus(Engine):
    def gpu_memory(self) -> list[tuple[int, int, int]]:
        return [(0, 8 * GIB, 3 * GIB), (1, 8 * GIB, GIB // 8)]

    def generate(self, prompt: Prompt, params: GenerationParams) -> Any:
        yield Delta("hi", (1,), "stop")


@pytest.mark.parametrize(("num_gpus", "count"), [(None, 2), (1, 1), (0, 0)])
async def test_num_gpus_limits_the_reported_gpus(start: Any, client_of: Any, num_gpus: int | None, count: int) -> None:
    roles = {"user": role_of("nothing")}
    server = await start(ChatStream(client_roles=roles, engine=TwoGpus(), num_gpus=num_gpus))
    async with client_of(server).session.get(f"{server.url}/get_resource_usage") as response:
        (worker,) = (await response.json())["memory_usage"]
    all_gpus = [
        {"index": 0, "total_memory": 8.0, "used_memory": 3.0},
        {"index": 1, "total_memory": 8.0, "used_memory": 0.12},
    ]
    assert (worker["num_gpus"], worker["gpus"]) == (count, all_gpus[:count])


async def test_too_many_request_as_http_error_false_still_returns_503(start: Any, stepper: Any, client_of: Any) -> None:
    engine = stepper()
    options: dict[str, Any] = {
        "num_of_concurrent_executions": 1,
        "max_queue_size": 0,
        "too_many_request_as_http_error": False,
    }
    server: Server = await start(ChatStream(engine=engine, max_new_tokens=1, **options))
    running = asyncio.create_task(client_of(server).say("hi"))
    await until(lambda: engine.calls)
    async with client_of(server).post(user_input="hi") as response:
        assert response.status == 503
    engine.allow()
    await running


@pytest.mark.parametrize(
    ("wire_format", "headers", "body"),
    [
        ("chatstream", {}, "a <::EOS::>"),
        ("chatstream", {"Accept": "image/png"}, "a <::EOS::>"),
        ("chatstream", {"Accept": "text/plain"}, "a "),
        ("chatstream", {"X-ChatStream-Wire": "cumulative"}, "a "),
        ("chatstream-older", {}, "a "),
        ("chatstream-older", {"X-ChatStream-Wire": "cumulative-eos"}, "a <::EOS::>"),
        ("text", {}, "a "),
    ],
)
async def test_the_option_sets_the_default_format_and_headers_override_it(
    start: Any, client_of: Any, wire_format: Any, headers: dict[str, str], body: str
) -> None:
    server = await start(ChatStream(engine=echo, wire_format=wire_format))
    url, session = f"{server.url}/chat_stream", client_of(server).session
    async with session.post(url, json={"user_input": "a"}, headers=headers) as response:
        assert await response.text() == body


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        (
            {"all": True},
            {path.replace(":.+", "") for endpoint in ENDPOINTS.values() for path in (endpoint.path, *endpoint.parts)},
        ),
        ({"include": ["chat_stream", "clear_context"]}, {"/chat_stream", "/clear_context"}),
        ({"exclude": [name for name in ENDPOINTS if name != "stop"]}, {"/chat_stream/stop"}),
    ],
)
async def test_append_apis_mounts_the_selected_endpoints_and_sets_up(options: Any, paths: set[str]) -> None:
    app, chat_stream = web.Application(), ChatStream(engine=echo)
    chat_stream.append_middlewares(app)
    chat_stream.append_apis(app, options)
    assert {resource.canonical for resource in app.router.resources()} == paths
    async with serving(app):
        assert chat_stream.state == "ready"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "exactly one of 'include', 'exclude' and 'all', not none"),
        ({"include": [], "all": True}, "exactly one of .* not 'include' and 'all'"),
        ({"all": False}, "'all' must be True, not False"),
        ({"all": "yes"}, "'all' must be True, not 'yes'"),
        ({"include": ["chat"]}, "include: "),
        ({"include": ["chat"], "web_ui_params": {"title": "Mine"}}, "include: "),
        ({"include": "chat_stream"}, "include: must be a list"),
        ({"exclude": None}, "exclude: must be a list"),
        ({"all": True, "color": 1}, "options: unknown key 'color'; choose from include, exclude, all, web_ui_params"),
        ({"all": True, 5: 1}, "options: unknown key 5"),
        ({"all": True, "web_ui_params": {"theme": "blue"}}, "web_ui_params.theme: must be"),
        ("all", "options: must be a dict"),
    ],
)
def test_wrong_options_of_append_apis_are_a_value_error_and_change_nothing(options: Any, says: str) -> None:
    app, chat_stream = web.Application(), ChatStream(engine=echo)
    page = chat_stream.page
    with pytest.raises(ValueError, match=says):
        chat_stream.append_apis(app, options)
    assert list(app.router.resources()) == []
    assert len(app.on_shutdown) == 0
    assert chat_stream.page is page


async def test_append_apis_sets_the_texts_of_the_page() -> None:
    app, chat_stream = web.Application(), ChatStream(engine=echo)
    chat_stream.append_middlewares(app)
    chat_stream.append_apis(app, {"all": True, "web_ui_params": {"title": "Help desk"}})
    async with serving(app) as url, aiohttp.ClientSession() as session, session.get(f"{url}/ui_config") as response:
        assert (await response.json())["title"] == "Help desk"


async def test_start_queue_worker_is_harmless_called_and_awaited() -> None:
    app, chat_stream = web.Application(), ChatStream(engine=echo)
    chat_stream.append_middlewares(app)
    chat_stream.append_apis(app, {"all": True})
    chat_stream.start_queue_worker()
    awaited = []

    async def startup(app: web.Application) -> None:
        await chat_stream.start_queue_worker()
        awaited.append(True)

    app.on_startup.append(startup)
    async with serving(app) as url, browser(url) as client:
        assert (await client.say("hello"))["text"] == "hello "
    assert awaited


async def test_append_middlewares_sets_up_the_chosen_sessions() -> None:
    app, chat_stream = web.Application(), ChatStream(engine=echo)
    chat_stream.append_middlewares(app, {"session_storage": SimpleCookieStorage(cookie_name="MINE")})
    chat_stream.append_middlewares(app)
    assert len(app.middlewares) == 1
    chat_stream.append_apis(app, {"all": True})
    async with serving(app) as url, browser(url) as client, client.post(user_input="hi") as response:
        assert list(response.cookies) == ["MINE"]


def test_append_middlewares_leaves_an_apps_own_sessions() -> None:
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    before = list(app.middlewares)
    ChatStream(engine=echo).append_middlewares(app, {"session_storage": SimpleCookieStorage()})
    assert list(app.middlewares) == before


@pytest.mark.parametrize(
    ("opts", "says"),
    [
        ({"storage": 1}, "whose only key is 'session_storage'"),
        ([], "must be a dict"),
        ({"session_storage": "memory"}, "session_storage: must be a storage of aiohttp-session, not 'memory'"),
    ],
)
def test_wrong_options_of_append_middlewares_are_a_value_error(opts: Any, says: str) -> None:
    app = web.Application()
    with pytest.raises(ValueError, match=says):
        ChatStream(engine=echo).append_middlewares(app, opts)
    assert len(app.middlewares) == 0


def test_each_endpoint_has_a_method() -> None:
    for name in ENDPOINTS:
        assert inspect.iscoroutinefunction(getattr(ChatStream, f"handle_{name}_request")), name


async def test_the_methods_are_handlers() -> None:
    app, chat_stream = web.Application(), ChatStream(engine=echo)
    chat_stream.append_middlewares(app)
    chat_stream.setup(app)
    app.router.add_post("/api/talk", chat_stream.handle_chat_stream_request)
    app.router.add_get("/api/history", chat_stream.handle_history_request)
    app.router.add_post("/api/stop", chat_stream.handle_stop_request)
    async with serving(app) as url, browser(url) as client:
        async with client.post("/api/talk", user_input="hi") as response:
            assert await response.text() == "hi <::EOS::>"
        async with client.session.get(f"{url}/api/history") as response:
            assert [message["content"] for message in (await response.json())["messages"]] == ["hi", "hi "]
        async with client.post("/api/stop") as response:
            assert (response.status, (await response.json())["error"]) == (404, "not_running_here")


def test_compat_exports_the_names_of_chatstream() -> None:
    presets = {name for name in compat.__all__ if name.startswith("ChatPrompt")}
    assert len(presets) == 13
    others = (
        "AbstractChatPrompt AbstractRequestHandler ChatContent ChatStream LoadTime PromptTTL RoleType "
        "SimpleSessionRequestHandler TokenSamplerHft TokenSamplerIsok"
    )
    assert {*others.split(), *presets} == set(compat.__all__)
    assert all(issubclass(getattr(compat, name), compat.AbstractChatPrompt) for name in presets)


async def test_a_callback_reads_the_conversation_as_a_prompt() -> None:
    app, prompts = web.Application(), []
    chat_stream = ChatStream(engine=echo, chat_prompt_clazz=compat.ChatPromptTogetherRedPajamaINCITEChat)

    def callback(request: web.Request, message: str) -> None:
        prompts.append((message, chat_stream.chat_prompt_of(request)))

    async def talk(request: web.Request) -> web.StreamResponse:
        return await chat_stream.handle_chat_stream_request(request, callback=callback)

    chat_stream.append_middlewares(app)
    chat_stream.setup(app)
    app.router.add_post("/chat_stream", talk)
    async with serving(app) as url, browser(url) as client:
        for text in ("hi", "again"):
            async with client.post(user_input=text) as response:
                await response.read()
        async with client.post() as response:
            assert response.status == 422
        await until(lambda: len(prompts) == 3)
    (_, first), (message, prompt), (_, refused) = prompts
    assert first is not None
    assert prompt is not None
    assert first.create_prompt() == "<human>: hi\n<bot>: hi"
    assert prompt.create_prompt() == "<human>: hi\n<bot>: hi\n<human>: again\n<bot>: again"
    assert (message, prompt.get_turn(), prompt.get_responder_last_msg()) == ("success", 2, "again ")
    assert refused is None


async def test_a_prompt_class_without_the_methods_of_chatstream_is_a_type_error_of_the_callback() -> None:
    class Plain(AbstractChatPrompt):
        def create_prompt(self) -> str:
            return self.message

    chat_stream = ChatStream(engine=echo, chat_prompt_clazz=Plain)
    async with chat_stream:
        request = make_mocked_request("POST", "/chat_stream")
        request[CONVERSATION] = Conversation()
        with pytest.raises(TypeError, match=r"^chat_prompt_clazz: must be a prompt class of aiochatstream.compat"):
            chat_stream.chat_prompt_of(request)
