"""Tests of the generation parameters of a user, with sessions in memory and in cookies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from cryptography.fernet import Fernet
from transformers import PreTrainedTokenizerBase

from aiochatstream import ChatStream, ConversationStore, GenerationParams, MemoryConversationStore, MemoryStorage
from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.sessions.session_storage import MAX_COOKIE_BYTES
from tests.engines.transformers.tiny_models import tiny
from tests.helpers import Client, ClientOf, MakeStepper, Server, StartServer, echo, until
from tests.prompts.templates import QWEN, with_template
from tests.small_engine import SmallEngine

KEY = Fernet.generate_key()
STORAGES: dict[str, Callable[[], AbstractStorage]] = {
    "memory": MemoryStorage,
    "cookie": lambda: EncryptedCookieStorage(Fernet(KEY), samesite="Lax"),
}

DEFAULTS = {
    "temperature": 0.5,
    "top_k_value": 0,
    "top_p_value": 1.0,
    "max_new_tokens": 256,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "repetition_penalty_method": "multiplicative",
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "logit_bias": {},
    "seed": None,
    "stop": [],
    "ignore_eos": False,
    "thinking": "auto",
    "chat_template_kwargs": {},
    "max_thinking_tokens": None,
}


def params_engine(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
    """Yield the parameters as JSON, and then the stop strings, one of which ends the answer."""
    yield params.model_dump_json(exclude={"stop"})
    yield "".join(params.stop)


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest) -> AbstractStorage:
    return STORAGES[request.param]()


@pytest.fixture
async def server(start: StartServer, storage: AbstractStorage) -> Server:
    return await start(ChatStream(engine=params_engine, params=GenerationParams(temperature=0.5)), storage)


async def set_params(client: Client, **values: Any) -> dict[str, Any]:
    async with client.post("/set_generation_params", **values) as response:
        body: dict[str, Any] = await response.json()
        assert response.status == 200, body
        assert (body["success"], body["message"]) == (True, "success")
        effective: dict[str, Any] = body["generation_params"]
        return effective


async def refusal(client: Client, **values: Any) -> str:
    """Return the detail of a refusal, and check that it sets no cookie."""
    async with client.post("/set_generation_params", **values) as response:
        body = await response.json()
        assert (response.status, body["error"], body["success"]) == (422, "invalid_value", False)
        assert body["message"] == body["detail"]
        assert "Set-Cookie" not in response.headers
        detail: str = body["detail"]
        return detail


async def get_params(client: Client) -> dict[str, Any]:
    async with client.session.get(f"{client.url}/get_generation_params") as response:
        body: dict[str, Any] = await response.json()
        assert (response.status, body["success"], body["message"]) == (200, True, "success")
        assert "Set-Cookie" not in response.headers
        effective: dict[str, Any] = body["generation_params"]
        return effective


async def params_of_answer(client: Client, **params: Any) -> dict[str, Any]:
    """Return the parameters of an answer."""
    answer: dict[str, Any] = json.loads((await client.say("hi", params=params))["text"])
    return answer


async def test_the_defaults_are_the_servers_and_reading_them_creates_no_session(
    server: Server, client_of: ClientOf
) -> None:
    assert await get_params(client_of(server)) == DEFAULTS


async def test_parameters_are_saved_and_change_this_users_answers_only(server: Server, client_of: ClientOf) -> None:
    anna, bert = client_of(server), client_of(server)
    three = {"temperature": 0.25, "top_k_value": 40, "top_p_value": 0.75}
    others = {
        "min_p": 0.1,
        "logit_bias": {"5": -100},
        "stop": ["Stop"],
        "seed": 7,
        "repetition_penalty_method": "subtractive",
    }
    assert await set_params(anna, **three) == {**DEFAULTS, **three}
    assert await set_params(anna, **others) == {**DEFAULTS, **three, **others}
    assert await get_params(anna) == {**DEFAULTS, **three, **others}
    answer = await params_of_answer(anna)
    assert (answer["temperature"], answer["top_k"], answer["top_p"]) == (0.25, 40, 0.75)
    del others["stop"]  # it is not in the answer, because it ends the answer
    assert {name: answer[name] for name in others} == others
    assert await get_params(bert) == DEFAULTS
    assert (await params_of_answer(bert))["temperature"] == 0.5
    assert await params_of_answer(anna) == answer, "the user's seed is each answer's"


async def test_sources_name_the_origin_of_each_value(server: Server, client_of: ClientOf) -> None:
    client = client_of(server)

    async def sources() -> dict[str, str]:
        async with client.session.get(f"{client.url}/get_generation_params") as response:
            body = await response.json()
        assert body["sources"].keys() == body["generation_params"].keys()
        origins: dict[str, str] = body["sources"]
        return origins

    unset = await sources()
    assert {name for name, source in unset.items() if source != "default"} == {"temperature"}
    assert unset["temperature"] == "app"
    async with client.post("/set_generation_params", top_k_value=40, temperature=0.5, seed=7) as response:
        changed = (await response.json())["sources"]
    assert changed == await sources()
    assert changed == {**unset, "top_k_value": "user", "temperature": "user", "seed": "user"}


async def test_parameters_of_a_request_override_those_of_its_user(server: Server, client_of: ClientOf) -> None:
    client = client_of(server)
    await set_params(client, temperature=0.25, top_k=40, seed=7)
    answer = await params_of_answer(client, temperature=1.5, seed=8)
    assert (answer["temperature"], answer["top_k"], answer["seed"]) == (1.5, 40, 8)
    assert (await get_params(client))["temperature"] == 0.25


async def test_null_restores_a_default_and_absent_parameters_stay(server: Server, client_of: ClientOf) -> None:
    client = client_of(server)
    await set_params(client, temperature=0.25, top_k_value=40, seed=7)
    assert await set_params(client, top_k_value=None) == {**DEFAULTS, "temperature": 0.25, "seed": 7}
    assert await set_params(client, seed=None, temperature=None) == DEFAULTS
    assert (await params_of_answer(client))["seed"] != (await params_of_answer(client))["seed"]


async def test_the_session_is_written_only_if_something_changes(server: Server, client_of: ClientOf) -> None:
    client = client_of(server)
    for body, writes in (
        ({}, False),
        ({"temperature": None}, False),
        ({"temperature": 0.25}, True),
        ({"temperature": 0.25}, False),
        ({"top_k": None}, False),
        ({"temperature": None}, True),
    ):
        async with client.post("/set_generation_params", **body) as response:
            assert response.status == 200
            assert ("Set-Cookie" in response.headers) is writes, body


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 2.1}, "temperature: must be a number from 0 (greedy) to 2."),
        ({"top_k_value": 1001}, "top_k_value: must be a whole number from 0 (off) to 1000."),
        ({"top_p_value": -1}, "top_p_value: must be a number from 0 (greedy) to 1 (off)."),
        ({"top_p_value": 0.5, "top_p": 0.5}, "top_p_value: cannot be used together with top_p, its other name."),
        ({"min_p": "x"}, "min_p: must be a number from 0 (off) to 1."),
        ({"max_new_tokens": 257}, "max_new_tokens: must be from 1 to 256 on this server."),
        ({"repetition_penalty": 0}, "repetition_penalty: must be from 0.01 to 10 with the method 'multiplicative'."),
        ({"temperature": 1, "logit_bias": {"x": 1}}, "logit_bias: must be an object of up to 300 token ids"),
        ({"logit_bias": dict.fromkeys(map(str, range(200)), 1)}, "generation_params: must be at most 1024 bytes"),
    ],
    ids=str,
)
async def test_values_out_of_range_are_refused_and_change_nothing(
    server: Server, client_of: ClientOf, values: dict[str, Any], message: str
) -> None:
    client = client_of(server)
    assert (await refusal(client, **values)).startswith(message)
    await set_params(client, top_k=3)
    assert (await refusal(client, **values)).startswith(message)
    assert await get_params(client) == {**DEFAULTS, "top_k_value": 3}


async def test_param_limits_apply_to_users_and_requests(start: StartServer, client_of: ClientOf) -> None:
    limits = {"temperature": (0, 1), "top_k": (1, 500)}
    client = client_of(
        await start(ChatStream(engine=params_engine, params=GenerationParams(top_k=50), param_limits=limits))
    )
    assert await refusal(client, temperature=1.1) == "temperature: must be from 0 to 1 on this server."
    assert await refusal(client, top_k_value=0) == "top_k: must be from 1 to 500 on this server."
    assert (await set_params(client, temperature=0, top_k_value=500))["top_k_value"] == 500
    assert (await params_of_answer(client, top_k=1))["top_k"] == 1
    async with client.post(user_input="hi", params={"temperature": 1.5}) as response:
        assert response.status == 422
        assert (await response.json())["detail"] == "params.temperature: must be from 0 to 1 on this server."


async def test_the_returned_ranges_are_the_accepted_ones(start: StartServer, client_of: ClientOf) -> None:
    server = await start(
        ChatStream(engine=params_engine, params=GenerationParams(top_k=50), param_limits={"top_k": (1, 500)})
    )
    client = client_of(server)
    async with client.session.get(f"{server.url}/get_generation_params") as response:
        limits = (await response.json())["limits"]
    assert (limits["max_new_tokens"], limits["top_k"], limits["temperature"]) == ([1, 256], [1, 500], [0, 2])
    for name, (least, most) in limits.items():
        for allowed in (least, most):
            await set_params(client, **{name: allowed})
        for beyond in (least - 0.01 if type(least) is float else least - 1, most + 1):
            assert (await refusal(client, **{name: beyond})).startswith(f"{name}: must be"), name


async def test_levels_of_thinking_and_variables_of_the_template_are_returned(
    start: StartServer, client_of: ClientOf
) -> None:
    for allow_system_prompt, limits, levels, names in (
        (True, {}, ["auto", "off", "high"], ["enable_thinking", "language"]),
        (False, {}, ["auto", "off", "high"], ["enable_thinking"]),
        (True, {"thinking": ["auto", "low"], "chat_template_kwargs": ["language", "x"]}, ["auto", "low"], ["language"]),
    ):
        engine = TransformersEngine(tiny(), with_template(QWEN))
        chat_stream = ChatStream(engine=engine, param_limits=limits, allow_system_prompt=allow_system_prompt)
        client = client_of(await start(chat_stream))
        if not allow_system_prompt:
            variables = {"language": "French"}
            assert (await refusal(client, chat_template_kwargs=variables)).endswith("sets the system prompt itself.")
            text = {"enable_thinking": "You are a pirate."}  # some templates write it into the system prompt
            for values in (variables, text):
                async with client.post(
                    "/chat_stream", user_input="Hello", params={"chat_template_kwargs": values}
                ) as response:
                    assert response.status == 422
        async with client.session.get(f"{client.url}/get_generation_params") as response:
            body = await response.json()
        assert (body["thinking_levels"], body["template_variables"]) == (levels, names)
        assert (await set_params(client, thinking="low"))["thinking"] == "low"
        assert (await refusal(client, chat_template_kwargs={"tools": 1})).startswith("chat_template_kwargs.tools: ")
    assert (await refusal(client, thinking="off")).startswith("thinking: must be 'auto' or 'low' on this server.")
    assert (await refusal(client, chat_template_kwargs={"enable_thinking": True})).startswith(
        "chat_template_kwargs.enable_thinking: must be absent; this server limits thinking."
    )


async def test_settings_that_a_server_no_longer_allows_are_ignored(start: StartServer, client_of: ClientOf) -> None:
    async def worker(**options: Any) -> Server:
        return await start(ChatStream(engine=params_engine, **options), STORAGES["cookie"]())

    client = client_of(await worker())
    await set_params(client, temperature=1.5, top_k=3)
    narrower = Client(
        client.session,
        (await worker(params=GenerationParams(temperature=0.5), param_limits={"temperature": (0, 1)})).url,
    )
    assert await get_params(narrower) == DEFAULTS
    assert (await params_of_answer(narrower))["temperature"] == 0.5
    assert await set_params(narrower, top_p=0.5) == {**DEFAULTS, "top_p_value": 0.5}


async def test_invalid_settings_in_an_open_cookie_are_ignored(start: StartServer, client_of: ClientOf) -> None:
    server = await start(
        ChatStream(engine=params_engine, params=GenerationParams(temperature=0.5)), SimpleCookieStorage()
    )
    for params in (5, {"number": "x"}, {"number": 1, "values": 5}, {"number": 1, "values": {"temperature": "\ud800"}}):
        client = client_of(server)
        data = {"session": {"aiochatstream": {"id": repr(params), "params": params}}, "created": 0}
        client.session.cookie_jar.update_cookies({"AIOHTTP_SESSION": json.dumps(data)})
        assert await get_params(client) == DEFAULTS
        assert (await params_of_answer(client))["temperature"] == 0.5
        assert (await set_params(client, top_k=3))["top_k_value"] == 3


@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "application/json"])
@pytest.mark.parametrize("first", [True, False])
async def test_settings_changed_during_an_answer_survive_its_response(
    start: StartServer, client_of: ClientOf, stepper: MakeStepper, storage: AbstractStorage, accept: str, first: bool
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=1, temperature=0.5)), storage)
    client = client_of(server)
    await set_params(client, top_k=3)  # creates the session
    if not first:
        engine.allow(1)
        await client.say("one")

    async def ask() -> None:
        async with client.post(accept=accept, user_input="two") as response:
            assert response.status == 200
            await response.read()

    calls = len(engine.calls)
    asking = asyncio.create_task(ask())
    await until(lambda: len(engine.calls) > calls)
    await set_params(client, temperature=0.25)
    engine.allow(1)
    await asking
    expected = {**DEFAULTS, "max_new_tokens": 1, "top_k_value": 3, "temperature": 0.25}
    assert await get_params(client) == expected
    assert (await client.texts())[-2:] == ["two", "1 "]
    params = GenerationParams(max_new_tokens=1, temperature=0.5)
    other = await start(ChatStream(engine=engine, params=params), storage)
    assert await get_params(Client(client.session, other.url)) == expected  # they are stored in the session
    assert await get_params(client) == expected


@pytest.mark.parametrize("store", [None, MemoryConversationStore()], ids=["no store", "store"])
async def test_settings_survive_an_app_that_writes_into_the_session_during_an_answer(
    start: StartServer,
    stepper: MakeStepper,
    client_of: ClientOf,
    storage: AbstractStorage,
    store: ConversationStore | None,
) -> None:
    app = web.Application()
    aiohttp_session.setup(app, storage)
    engine = stepper()
    chat_stream = ChatStream(
        engine=engine, params=GenerationParams(max_new_tokens=1, temperature=0.5), conversation_store=store
    )
    chat_stream.setup(app)

    async def counted(request: web.Request) -> web.StreamResponse:
        session = await aiohttp_session.get_session(request)
        session["visits"] = session.get("visits", 0) + 1
        return await chat_stream.handle_chat_stream_request(request)

    app.router.add_post("/counted", counted)
    app.add_routes(chat_stream.routes())
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await chat_stream.wait_ready()
        client = client_of(Server(chat_stream, runner, f"http://127.0.0.1:{runner.addresses[0][1]}"))
        await set_params(client, top_k=3)

        async def ask() -> None:
            async with client.post("/counted", user_input="two") as response:
                assert await response.text() == "1 "

        asking = asyncio.create_task(ask())
        await until(lambda: len(engine.calls) == 1)
        await set_params(client, temperature=0.25)
        engine.allow(1)
        await asking
        other = await start(ChatStream(engine=echo), storage)
        params = await get_params(Client(client.session, other.url))
        assert (params["top_k_value"], params["temperature"]) == (3, 0.25)
    finally:
        await runner.cleanup()


async def test_settings_keep_the_cookie_within_the_limit_of_browsers(start: StartServer, client_of: ClientOf) -> None:
    server = await start(
        ChatStream(engine=params_engine, params=GenerationParams(max_new_tokens=1)), STORAGES["cookie"]()
    )
    client = client_of(server)
    for turn in range(8):
        await client.say(f"{turn} " + " ".join(str(turn * number) for number in range(120)))
    await client.history()
    bias = {str(1000 + number): round(number / 7, 3) for number in range(60)}
    async with client.post("/set_generation_params", logit_bias=bias) as response:
        assert response.status == 200
        assert 2000 < len(response.headers["Set-Cookie"].encode()) <= MAX_COOKIE_BYTES
    other = Client(client.session, (await start(ChatStream(engine=params_engine), STORAGES["cookie"]())).url)
    assert (await get_params(other))["logit_bias"] == bias
    assert (await other.texts())[-2].startswith("7 ")


async def test_a_bias_for_an_unknown_token_is_refused_in_requests(
    start: StartServer, client_of: ClientOf, small_engine: SmallEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    client = client_of(await start(ChatStream(engine=small_engine, params=GenerationParams(max_new_tokens=2))))
    sentence = "logit_bias: token id 49152 is out of range; the vocabulary has 49152 tokens."
    assert await refusal(client, logit_bias={"49152": 1}) == sentence
    async with client.post(user_input="hi", params={"logit_bias": {"7": 1, "49152": 1}}) as response:
        assert response.status == 422
        assert (await response.json())["detail"] == f"params.{sentence}"
        assert "Set-Cookie" not in response.headers
    token = tokenizer(" Paris", add_special_tokens=False)["input_ids"][0]
    assert (await client.say("hi", params={"logit_bias": {str(token): 100}}))["text"] == " Paris Paris"


async def test_a_bias_for_an_unknown_token_is_refused_at_startup(start: StartServer, small_engine: SmallEngine) -> None:
    with pytest.raises(ValueError, match=r"^logit_bias: token id 49152 is out of range"):
        await start(ChatStream(engine=small_engine, params=GenerationParams(logit_bias={49152: 1})))


async def test_the_ranges_are_computed_once(
    server: Server, client_of: ClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(server)
    first = await get_params(client)
    monkeypatch.setattr(GenerationParams, "model_json_schema", None)
    assert await get_params(client) == first
