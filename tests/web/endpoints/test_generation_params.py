"""Parameters that a user sets for all of the user's answers, over real sockets and with both kinds of sessions."""

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
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aiochatstream import ChatStream, GenerationParams, MemoryConversationStore, MemoryStorage
from aiochatstream.sessions import recent_params
from aiochatstream.sessions.cookie_session import MAX_COOKIE_BYTES
from tests.helpers import Client, ClientOf, MakeStepper, Server, StartServer, until

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
}


def tells_params(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
    """An engine that answers with what it was asked to answer by, but for stop strings, which would end that."""
    yield params.model_dump_json(exclude={"stop"})
    yield "".join(params.stop)


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest) -> AbstractStorage:
    return STORAGES[request.param]()


@pytest.fixture
async def server(start: StartServer, storage: AbstractStorage) -> Server:
    made: Server = await start(ChatStream(engine=tells_params, temperature=0.5), storage)
    return made


async def put(client: Client, **values: Any) -> dict[str, Any]:
    async with client.post("/set_generation_params", **values) as response:
        body: dict[str, Any] = await response.json()
        assert response.status == 200, body
        assert (body["success"], body["message"]) == (True, "success")
        effective: dict[str, Any] = body["generation_params"]
        return effective


async def refused(client: Client, **values: Any) -> str:
    """Why; and that it leaves no trace."""
    async with client.post("/set_generation_params", **values) as response:
        body = await response.json()
        assert (response.status, body["error"], body["success"]) == (422, "invalid_value", False)
        assert body["message"] == body["detail"]
        assert "Set-Cookie" not in response.headers
        detail: str = body["detail"]
        return detail


async def told(client: Client) -> dict[str, Any]:
    async with client.session.get(f"{client.url}/get_generation_params") as response:
        body: dict[str, Any] = await response.json()
        assert (response.status, body["success"], body["message"]) == (200, True, "success")
        assert "Set-Cookie" not in response.headers
        effective: dict[str, Any] = body["generation_params"]
        return effective


async def used(client: Client, **params: Any) -> dict[str, Any]:
    """What an answer was made with."""
    answer: dict[str, Any] = json.loads((await client.say("hi", params=params))["text"])
    return answer


async def test_the_defaults_are_the_servers_and_reading_them_creates_no_session(
    server: Server, client_of: ClientOf
) -> None:
    assert await told(client_of(server)) == DEFAULTS


async def test_parameters_are_saved_and_change_this_users_answers_only(
    server: Server, client_of: ClientOf
) -> None:
    anna, bert = client_of(server), client_of(server)
    three = {"temperature": 0.25, "top_k_value": 40, "top_p_value": 0.75}
    others = {
        "min_p": 0.1,
        "logit_bias": {"5": -100},
        "stop": ["Stop"],
        "seed": 7,
        "repetition_penalty_method": "subtractive",
    }
    assert await put(anna, **three) == {**DEFAULTS, **three}
    assert await put(anna, **others) == {**DEFAULTS, **three, **others}
    assert await told(anna) == {**DEFAULTS, **three, **others}
    answer = await used(anna)
    assert (answer["temperature"], answer["top_k"], answer["top_p"]) == (0.25, 40, 0.75)
    del others["stop"]  # that it holds shows by its absence
    assert {name: answer[name] for name in others} == others
    assert await told(bert) == DEFAULTS
    assert (await used(bert))["temperature"] == 0.5
    assert await used(anna) == answer, "the user's seed is each answer's"


async def test_parameters_of_a_request_override_those_of_its_user(server: Server, client_of: ClientOf) -> None:
    client = client_of(server)
    await put(client, temperature=0.25, top_k=40, seed=7)
    answer = await used(client, temperature=1.5, seed=8)
    assert (answer["temperature"], answer["top_k"], answer["seed"]) == (1.5, 40, 8)
    assert (await told(client))["temperature"] == 0.25


async def test_null_restores_a_default_and_absent_parameters_stay(server: Server, client_of: ClientOf) -> None:
    client = client_of(server)
    await put(client, temperature=0.25, top_k_value=40, seed=7)
    assert await put(client, top_k_value=None) == {**DEFAULTS, "temperature": 0.25, "seed": 7}
    assert await put(client, seed=None, temperature=None) == DEFAULTS
    assert (await used(client))["seed"] != (await used(client))["seed"]


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
    ("values", "says"),
    [
        ({"temperature": 2.1}, "temperature: must be a number from 0 (greedy) to 2."),
        ({"top_k_value": 1001}, "top_k_value: must be a whole number from 0 (off) to 1000."),
        ({"top_p_value": -1}, "top_p_value: must be a number from 0 (greedy) to 1 (off)."),
        ({"top_p_value": 0.5, "top_p": 0.5}, "top_p_value: is another name of top_p; give one of the two."),
        ({"min_p": "x"}, "min_p: must be a number from 0 (off) to 1."),
        ({"max_new_tokens": 257}, "max_new_tokens: must be from 1 to 256 on this server."),
        ({"repetition_penalty": 0}, "repetition_penalty: must be from 0.01 to 10 with the method 'multiplicative'."),
        ({"temperature": 1, "logit_bias": {"x": 1}}, "logit_bias: must be an object of up to 300 token ids"),
        ({"logit_bias": dict.fromkeys(map(str, range(200)), 1)}, "generation_params: must be at most 1024 bytes"),
    ],
    ids=str,
)
async def test_values_out_of_range_are_refused_and_change_nothing(
    server: Server, client_of: ClientOf, values: dict[str, Any], says: str
) -> None:
    client = client_of(server)
    assert (await refused(client, **values)).startswith(says)
    await put(client, top_k=3)
    assert (await refused(client, **values)).startswith(says)
    assert await told(client) == {**DEFAULTS, "top_k_value": 3}


async def test_param_limits_apply_to_users_and_requests(start: StartServer, client_of: ClientOf) -> None:
    limits = {"temperature": (0, 1), "top_k": (1, 500)}
    client = client_of(await start(ChatStream(engine=tells_params, top_k=50, param_limits=limits)))
    assert await refused(client, temperature=1.1) == "temperature: must be from 0 to 1 on this server."
    assert await refused(client, top_k_value=0) == "top_k: must be from 1 to 500 on this server."
    assert (await put(client, temperature=0, top_k_value=500))["top_k_value"] == 500
    assert (await used(client, top_k=1))["top_k"] == 1
    async with client.post(user_input="hi", params={"temperature": 1.5}) as response:
        assert response.status == 422
        assert (await response.json())["detail"] == "params.temperature: must be from 0 to 1 on this server."


async def test_the_returned_ranges_are_the_accepted_ones(start: StartServer, client_of: ClientOf) -> None:
    server = await start(ChatStream(engine=tells_params, top_k=50, param_limits={"top_k": (1, 500)}))
    client = client_of(server)
    async with client.session.get(f"{server.url}/get_generation_params") as response:
        limits = (await response.json())["limits"]
    assert (limits["max_new_tokens"], limits["top_k"], limits["temperature"]) == ([1, 256], [1, 500], [0, 2])
    for name, (least, most) in limits.items():
        for allowed in (least, most):
            await put(client, **{name: allowed})
        for beyond in (least - 0.01 if type(least) is float else least - 1, most + 1):
            assert (await refused(client, **{name: beyond})).startswith(f"{name}: must be"), name


async def test_settings_that_a_server_no_longer_allows_are_ignored(
    start: StartServer, client_of: ClientOf
) -> None:
    async def worker(**options: Any) -> Server:
        made: Server = await start(ChatStream(engine=tells_params, **options), STORAGES["cookie"]())
        return made

    client = client_of(await worker())
    await put(client, temperature=1.5, top_k=3)
    narrower = Client(client.session, (await worker(temperature=0.5, param_limits={"temperature": (0, 1)})).url)
    assert await told(narrower) == DEFAULTS
    assert (await used(narrower))["temperature"] == 0.5
    assert await put(narrower, top_p=0.5) == {**DEFAULTS, "top_p_value": 0.5}


async def test_invalid_settings_in_an_open_cookie_are_ignored(start: StartServer, client_of: ClientOf) -> None:
    server = await start(ChatStream(engine=tells_params, temperature=0.5), SimpleCookieStorage())
    for params in (5, {"number": "x"}, {"number": 1, "values": 5}, {"number": 1, "values": {"temperature": "\ud800"}}):
        client = client_of(server)
        data = {"session": {"aiochatstream": {"id": repr(params), "params": params}}, "created": 0}
        client.session.cookie_jar.update_cookies({"AIOHTTP_SESSION": json.dumps(data)})
        assert await told(client) == DEFAULTS
        assert (await used(client))["temperature"] == 0.5
        assert (await put(client, top_k=3))["top_k_value"] == 3


@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "application/json"])
@pytest.mark.parametrize("first", [True, False])
async def test_settings_changed_during_an_answer_survive_its_response(
    start: StartServer, client_of: ClientOf, stepper: MakeStepper, storage: AbstractStorage, accept: str, first: bool
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, max_new_tokens=1, temperature=0.5), storage)
    client = client_of(server)
    await put(client, top_k=3)  # there is a session now
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
    await put(client, temperature=0.25)
    engine.allow(1)
    await asking
    wanted = {**DEFAULTS, "max_new_tokens": 1, "top_k_value": 3, "temperature": 0.25}
    assert await told(client) == wanted
    assert (await client.texts())[-2:] == ["two", "1 "]
    server.chat_stream._recent_params = recent_params()  # the session itself has them, not only this process
    assert await told(client) == wanted


@pytest.mark.parametrize("store", [None, MemoryConversationStore()], ids=["no store", "store"])
async def test_settings_survive_an_app_that_writes_into_the_session_during_an_answer(
    stepper: MakeStepper, client_of: ClientOf, storage: AbstractStorage, store: Any
) -> None:
    app = web.Application()
    aiohttp_session.setup(app, storage)
    engine = stepper()
    chat_stream = ChatStream(engine=engine, max_new_tokens=1, temperature=0.5, conversation_store=store)
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
        await put(client, top_k=3)

        async def ask() -> None:
            async with client.post("/counted", user_input="two") as response:
                assert await response.text() == "1 "

        asking = asyncio.create_task(ask())
        await until(lambda: len(engine.calls) == 1)
        await put(client, temperature=0.25)
        engine.allow(1)
        await asking
        chat_stream._recent_params = recent_params()
        found = await told(client)
        assert (found["top_k_value"], found["temperature"]) == (3, 0.25)
    finally:
        await runner.cleanup()


async def test_settings_keep_the_cookie_within_the_limit_of_browsers(start: StartServer, client_of: ClientOf) -> None:
    server = await start(ChatStream(engine=tells_params, max_new_tokens=1), STORAGES["cookie"]())
    client = client_of(server)
    for turn in range(8):
        await client.say(f"{turn} " + " ".join(str(turn * number) for number in range(120)))
    await client.history()
    bias = {str(1000 + number): round(number / 7, 3) for number in range(60)}
    async with client.post("/set_generation_params", logit_bias=bias) as response:
        assert response.status == 200
        assert 2000 < len(response.headers["Set-Cookie"].encode()) <= MAX_COOKIE_BYTES
    other = Client(client.session, (await start(ChatStream(engine=tells_params), STORAGES["cookie"]())).url)
    assert (await told(other))["logit_bias"] == bias
    assert (await other.texts())[-2].startswith("7 ")


async def test_a_bias_for_an_unknown_token_is_refused_in_requests(
    start: StartServer, client_of: ClientOf, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    client = client_of(await start(ChatStream(model=model, tokenizer=tokenizer, max_new_tokens=2)))
    sentence = "logit_bias: token id 49152 is out of range; the vocabulary has 49152 tokens."
    assert await refused(client, logit_bias={"49152": 1}) == sentence
    async with client.post(user_input="hi", params={"logit_bias": {"7": 1, "49152": 1}}) as response:
        assert response.status == 422
        assert (await response.json())["detail"] == f"params.{sentence}"
        assert "Set-Cookie" not in response.headers
    said = tokenizer(" Paris", add_special_tokens=False)["input_ids"][0]
    assert (await client.say("hi", params={"logit_bias": {str(said): 100}}))["text"] == " Paris Paris"


async def test_a_bias_for_an_unknown_token_is_refused_at_startup(
    start: StartServer, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError, match=r"^logit_bias: token id 49152 is out of range"):
        await start(ChatStream(model=model, tokenizer=tokenizer, logit_bias={49152: 1}))


async def test_the_ranges_are_computed_once(
    server: Server, client_of: ClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(server)
    first = await told(client)
    monkeypatch.setattr(GenerationParams, "model_json_schema", None)
    assert await told(client) == first
