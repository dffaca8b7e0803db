"""API keys, and access of pages of other origins."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import openai
import pytest

from aiochatstream import ChatStream, Delta
from aiochatstream.web.openai.keys import ApiKeys
from tests.helpers import ClientOf, DeltaEngine, Server, StartServer, echo
from tests.web.openai.helpers import HI, OpenAIClientOf


async def test_requests_need_one_of_the_keys(
    start: StartServer, openai_of: OpenAIClientOf, client_of: ClientOf, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = await start(ChatStream(engine=echo), api_keys=["first-key", "second-key"])
    for key in ("first-key", "second-key"):
        client = openai_of(server, api_key=key)
        assert (await client.chat.completions.create(model="", messages=HI)).choices[
            0
        ].message.content == "one two three "
    for key in ("first-key2", "wrong", "first-key,second-key"):
        with pytest.raises(openai.AuthenticationError) as refused:
            await openai_of(server, api_key=key).models.list()
        assert refused.value.code == "invalid_api_key"
        assert refused.value.response.headers["WWW-Authenticate"] == "Bearer"
    for header in ({}, {"Authorization": "Bearer"}, {"Authorization": "Basic first-key"}):
        async with client_of(server).session.get(f"{server.url}/v1/models", headers=header) as response:
            assert response.status == 401
    assert "-key" not in caplog.text
    assert "-key" not in repr(ApiKeys(["first-key"])) + str(vars(ApiKeys(["first-key"])))
    async with client_of(server).post(user_input="hi") as response:  # other endpoints use roles
        assert response.status == 200


def test_a_short_key_causes_a_warning_that_does_not_show_it(caplog: pytest.LogCaptureFixture) -> None:
    ApiKeys(["x" * 20, "letmein-42", "y" * 40])
    (warning,) = caplog.messages
    assert "key 2 has fewer than 20 characters" in warning
    assert "letmein" not in warning


async def test_a_page_of_another_origin_is_refused_with_and_without_keys(
    start: StartServer, client_of: ClientOf
) -> None:
    for keys in (None, ["first-key"]):
        server = await start(ChatStream(engine=echo), api_keys=keys)
        headers = {"Origin": "https://evil.example", "Authorization": "Bearer first-key"}
        session = client_of(server).session
        async with session.post(f"{server.url}/v1/completions", json={"prompt": "x"}, headers=headers) as response:
            assert response.status == 403
            assert (await response.json())["error"]["code"] == "forbidden"


async def test_a_page_of_an_allowed_origin_may_send_any_header(start: StartServer, client_of: ClientOf) -> None:
    server = await start(ChatStream(engine=echo, allowed_origins=["https://app.example"]))
    session, origin = client_of(server).session, {"Origin": "https://app.example"}
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os",
    }
    async with session.options(f"{server.url}/v1/completions", headers={**origin, **preflight}) as response:
        assert response.status == 200
        assert "X-STAINLESS-OS" in response.headers["Access-Control-Allow-Headers"].upper()
    async with session.post(f"{server.url}/v1/completions", json={"prompt": "x"}, headers=origin) as response:
        assert response.status == 200
        assert "X-Request-Id" in response.headers["Access-Control-Expose-Headers"]


def test_a_file_contains_one_key_per_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# comment\nfirst-key\n\n  second-key  \n")
    assert repr(ApiKeys(file)) == "<ApiKeys 2>"
    file.write_text("first-key\r\nsecond-key\r\n", encoding="utf-8-sig")  # as written by Windows programs
    assert repr(ApiKeys(file)) == "<ApiKeys 2>"
    file.write_bytes(b"first-key\n\xff\xfe\n")
    with pytest.raises(ValueError, match="keys: key 2 must be 1 to 512 printable ASCII characters"):
        ApiKeys(file)
    file.write_text("# none\n")
    with pytest.raises(ValueError, match="keys: must contain at least one key"):
        ApiKeys(file)


@pytest.mark.parametrize("keys", [[], "a-key", [""], ["two words"], ["schlüssel"], [5], 5])
def test_invalid_keys_are_refused_and_not_shown(keys: Any) -> None:
    with pytest.raises(ValueError, match="api_keys: ") as refused:
        ApiKeys(keys)
    assert "two words" not in str(refused.value)


async def test_prompts_with_different_salts_have_different_owners(start: StartServer, client_of: ClientOf) -> None:
    """Without a key, the salt alone is the owner, on any connection."""
    engine = DeltaEngine(Delta("Hi", finish_reason="stop"))
    salts: list[str | None] = ["a", "a", "b", None, None]

    async def owners(server: Server, *keys: str) -> list[list[str]]:
        engine.prompts.clear()
        for key in keys:
            client = client_of(server)
            client.session.headers["Authorization"] = f"Bearer {key}"
            for salt in salts:
                async with client.post("/v1/completions", prompt="x", cache_salt=salt) as response:
                    assert response.status == 200
        values = [prompt.owner for prompt in engine.prompts]
        return [values[at : at + len(salts)] for at in range(0, len(values), len(salts))]

    without_keys = await owners(await start(ChatStream(engine=engine)), "", "")
    assert without_keys[0][:3] == without_keys[1][:3]
    assert without_keys[0][3] == without_keys[0][4] != without_keys[1][3]
    keys = ["a-key-of-twenty-characters", "b-key-of-twenty-characters"]
    with_keys = await owners(await start(ChatStream(engine=engine), api_keys=keys), *keys)
    for first, again, other, plain, plain_again in (without_keys[0], *with_keys):
        assert first == again
        assert plain == plain_again
        assert len({first, other, plain}) == 3
    assert not set(with_keys[0]) & set(with_keys[1])
