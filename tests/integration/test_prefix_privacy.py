"""Privacy of the prefix cache: neither the time nor the usage of an answer reveals another user's messages.

Users share only the prefix of the server's own prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from transformers import PreTrainedModel

from aiochatstream import AbstractChatPrompt, ChatStream, GenerationParams
from aiochatstream.engines.transformers import TransformersEngine
from tests.engines.transformers.tiny_models import BYTES, tiny
from tests.helpers import Client, ClientOf, Server, StartServer

SYSTEM = "Be brief."
HEAD = len(BYTES(f"{SYSTEM}\nQ: ", add_special_tokens=False)["input_ids"])
MESSAGE = "The number of my card is 4970 1234 5678 9012"
GUESS = "The number of my card is 4970 1234 0000 0000"


class Lines(AbstractChatPrompt):
    """A prompt of plain lines, with one token per byte."""

    system = SYSTEM
    add_special_tokens = False

    def create_prompt(self) -> str:
        lines = [("Q: " if role == self.requester else "A: ") + (text or "") for role, text in self.get_contents()]
        return "\n".join([self.system, *lines])


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny()


MakeChatStream = Callable[..., ChatStream]


@pytest.fixture
def make(model: PreTrainedModel) -> MakeChatStream:
    def make_chat_stream(*, options: dict[str, Any] | None = None, **more: Any) -> ChatStream:
        engine = TransformersEngine(model, BYTES, optimize=False, **(options or {}))
        return ChatStream(
            engine=engine, chat_prompt_clazz=Lines, params=GenerationParams(max_new_tokens=2, temperature=0.0), **more
        )

    return make_chat_stream


async def cached(client: Client, text: str, **body: Any) -> int:
    tokens: int = (await client.say(text, **body))["usage"]["cached_tokens"]
    return tokens


async def completed(server: Server, text: str, key: str = "none", **options: Any) -> int:
    """Return the number of cached tokens of a chat completion, on a new connection unless a session is given."""
    session = options.pop("session", None)
    messages = options.pop("messages", [{"role": "user", "content": text}])
    body = {"model": "", "messages": messages, **options}
    headers = {"Authorization": f"Bearer {key}"}
    own = aiohttp.ClientSession() if session is None else session
    try:
        async with own.post(f"{server.url}/v1/chat/completions", json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            usage: int = (await response.json())["usage"]["prompt_tokens_details"]["cached_tokens"]
            return usage
    finally:
        if session is None:
            await own.close()


async def test_the_servers_prefix_is_cached_from_the_first_request(
    make: MakeChatStream, start: StartServer, client_of: ClientOf
) -> None:
    server = await start(make())
    assert await cached(client_of(server), "one") == HEAD
    assert await cached(client_of(server), "two") == HEAD
    assert await completed(server, "three") == HEAD


@pytest.mark.parametrize("victim_first", [True, False])
async def test_another_users_messages_never_show_in_usage(
    make: MakeChatStream, start: StartServer, client_of: ClientOf, victim_first: bool
) -> None:
    server = await start(make())
    victim, attacker = client_of(server), client_of(server)
    if victim_first:
        await victim.say(MESSAGE)
    assert await cached(attacker, GUESS) == HEAD
    assert await completed(server, GUESS) == HEAD
    assert await cached(attacker, MESSAGE, conversation="other") == HEAD + len(GUESS.partition("0000")[0])


async def test_share_prefixes_shares_the_cache_among_users(
    make: MakeChatStream, start: StartServer, client_of: ClientOf
) -> None:
    server = await start(make(options={"share_prefixes": True}))
    await client_of(server).say(MESSAGE)
    assert await cached(client_of(server), MESSAGE) > HEAD + 20


async def test_the_next_turn_reuses_the_cached_prefix(
    make: MakeChatStream, start: StartServer, client_of: ClientOf
) -> None:
    client = client_of(await start(make()))
    first = (await client.say(MESSAGE))["usage"]
    assert await cached(client, "and?") >= first["prompt_tokens"]


@pytest.mark.parametrize("way", ["clear", "delete", "import"])
async def test_deleted_messages_are_removed_from_the_prefix_cache(
    make: MakeChatStream, start: StartServer, client_of: ClientOf, way: str
) -> None:
    client = client_of(await start(make()))
    answer = await client.say(MESSAGE)
    if way == "clear":
        async with client.post("/clear_context") as response:
            assert response.status == 200
    elif way == "delete":
        async with client.session.delete(f"{client.url}/history/{answer['message_id']}") as response:
            assert response.status == 200
    else:
        async with client.post("/import", messages=[]) as response:
            assert response.status == 200
    assert await cached(client, MESSAGE) == HEAD


async def test_a_discarded_answer_leaves_nothing_in_the_cache(
    make: MakeChatStream, start: StartServer, client_of: ClientOf
) -> None:
    client = client_of(await start(make()))
    async with client.post(accept="text/event-stream", user_input=MESSAGE) as response:
        await response.content.readline()
        async with client.post("/clear_context") as cleared:
            assert cleared.status == 200
    assert await cached(client, MESSAGE) == HEAD


async def test_accounts_keys_and_sessions_of_the_same_name_share_no_cache(
    make: MakeChatStream, start: StartServer, client_of: ClientOf
) -> None:
    async def identify(request: aiohttp.web.Request) -> str | None:
        return request.headers.get("Account")

    server = await start(make(identify_user=identify), api_keys=["openai"])
    owner = f"key:{hashlib.sha256(b'openai').hexdigest()}"
    await completed(server, MESSAGE, "openai")
    async with aiohttp.ClientSession(headers={"Account": owner}) as session:
        assert await cached(Client(session, server.url), MESSAGE) == HEAD
    async with aiohttp.ClientSession(headers={"Account": "openai"}) as session:
        assert await cached(Client(session, server.url), MESSAGE) == HEAD


async def test_each_api_key_has_its_own_cache(make: MakeChatStream, start: StartServer) -> None:
    server = await start(make(), api_keys=["first", "second"])
    await completed(server, MESSAGE, "first")
    assert await completed(server, MESSAGE, "second") == HEAD
    assert await completed(server, MESSAGE, "first") > HEAD + 20


async def test_without_keys_each_connection_has_its_own_cache(make: MakeChatStream, start: StartServer) -> None:
    server = await start(make())
    async with aiohttp.ClientSession() as first, aiohttp.ClientSession() as other:
        await completed(server, MESSAGE, session=first)
        assert await completed(server, MESSAGE, session=other) == HEAD
        assert await completed(server, MESSAGE, session=first) > HEAD + 20


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
async def test_clients_behind_a_proxy_share_no_cache_on_one_connection(
    make: MakeChatStream, start: StartServer, header: str
) -> None:
    server = await start(make())
    async with aiohttp.ClientSession(headers={header: "for=1.2.3.4"}) as proxy:
        await completed(server, MESSAGE, session=proxy)
        assert await completed(server, MESSAGE, session=proxy) == HEAD


@pytest.mark.parametrize("role", ["system", "developer"])
async def test_a_clients_system_message_does_not_reveal_the_servers(
    make: MakeChatStream, start: StartServer, role: str
) -> None:
    server = await start(make())
    for guess in (SYSTEM[:4], SYSTEM):
        messages = [{"role": role, "content": guess}, {"role": "user", "content": "hi"}]
        assert await completed(server, "", messages=messages) == 0
    body = {"model": "", "prompt": f"{SYSTEM}\nQ: hi"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/completions", json=body) as response,
    ):
        assert (await response.json())["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_a_users_system_prompt_does_not_reveal_the_servers(
    make: MakeChatStream, start: StartServer, client_of: ClientOf
) -> None:
    server = await start(make(allow_system_prompt=True))
    assert await cached(client_of(server), "hi", system=SYSTEM) == 0


async def test_nothing_is_cached_without_cache_memory(
    make: MakeChatStream, start: StartServer, client_of: ClientOf
) -> None:
    client = client_of(await start(make(options={"prefix_cache_bytes": 0})))
    assert [await cached(client, text) for text in ("one", "two")] == [0, 0]
