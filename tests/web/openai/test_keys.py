"""Who may call OpenAI's API."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import openai
import pytest

from aiochatstream import ChatStream
from aiochatstream.web.openai.keys import ApiKeys
from tests.helpers import echo

HI = [{"role": "user", "content": "hi"}]


async def test_only_who_says_one_of_the_keys_is_answered(
    start: Any, openai_of: Any, client_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = await start(ChatStream(engine=echo), api_keys=["first-key", "second-key"])
    for key in ("first-key", "second-key"):
        client = openai_of(server, api_key=key)
        assert (await client.chat.completions.create(model="", messages=HI)).choices[0].message.content == "hi "
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
    async with client_of(server).post(user_input="hi") as response:  # other endpoints have roles instead
        assert response.status == 200


def test_a_key_that_could_be_guessed_is_warned_of_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    ApiKeys(["x" * 20, "letmein-42", "y" * 40])
    (warning,) = caplog.messages
    assert "key 2 has fewer than 20 characters" in warning
    assert "letmein" not in warning


async def test_a_page_of_another_origin_is_refused_with_and_without_keys(start: Any, client_of: Any) -> None:
    for keys in (None, ["first-key"]):
        server = await start(ChatStream(engine=echo), api_keys=keys)
        headers = {"Origin": "https://evil.example", "Authorization": "Bearer first-key"}
        session = client_of(server).session
        async with session.post(f"{server.url}/v1/completions", json={"prompt": "x"}, headers=headers) as response:
            assert response.status == 403
            assert (await response.json())["error"]["code"] == "forbidden"


async def test_a_page_of_an_allowed_origin_may_send_any_header(start: Any, client_of: Any) -> None:
    server = await start(ChatStream(engine=echo, allowed_origins=["https://app.example"]))
    session, origin = client_of(server).session, {"Origin": "https://app.example"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    async with session.options(f"{server.url}/v1/completions", headers={**origin, **asks}) as response:
        assert response.status == 200
        assert "X-STAINLESS-OS" in response.headers["Access-Control-Allow-Headers"].upper()
    async with session.post(f"{server.url}/v1/completions", json={"prompt": "x"}, headers=origin) as response:
        assert response.status == 200
        assert "X-Request-Id" in response.headers["Access-Control-Expose-Headers"]


def test_keys_come_from_a_file_with_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# mine\nfirst-key\n\n  second-key  \n")
    assert repr(ApiKeys(file)) == "<ApiKeys 2>"
    file.write_text("first-key\r\nsecond-key\r\n", encoding="utf-8-sig")  # as Windows writes it
    assert repr(ApiKeys(file)) == "<ApiKeys 2>"
    file.write_bytes(b"first-key\n\xff\xfe\n")
    with pytest.raises(ValueError, match="keys: key 2 must be 1 to 512 printable ASCII characters"):
        ApiKeys(file)
    file.write_text("# none\n")
    with pytest.raises(ValueError, match="keys: has no key"):
        ApiKeys(file)


@pytest.mark.parametrize("wrong", [[], "a-key", [""], ["two words"], ["schlüssel"], [5], 5])
def test_what_cannot_be_keys_is_refused_and_not_repeated(wrong: Any) -> None:
    with pytest.raises(ValueError, match="api_keys: ") as refused:
        ApiKeys(wrong)
    assert "two words" not in str(refused.value)
