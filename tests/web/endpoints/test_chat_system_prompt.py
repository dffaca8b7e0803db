"""What a request has the model told first."""

from __future__ import annotations

from typing import Any

from aiochatstream import ChatPrompt, ChatStream, GenerationParams
from tests.helpers import Stepper


class OwnSystem(ChatPrompt):
    system = "Be brief."


async def test_it_takes_the_place_of_the_servers_own_for_that_answer_alone(start: Any, client_of: Any) -> None:
    engine = Stepper()
    engine.allow(100)
    chat_stream = ChatStream(
        engine=engine, chat_prompt_clazz=OwnSystem, allow_system_prompt=True, params=GenerationParams(max_new_tokens=1)
    )
    client = client_of(await start(chat_stream))
    await client.say("one", system="猫として話す。")
    await client.say("two")
    await client.say(None, regenerate=True, system="Be a dog.")
    for system in ("", None):
        await client.say("three", system=system)
    systems = [[message["content"] for message in told if message["role"] == "system"] for told in engine.calls]
    assert systems == [["猫として話す。"], ["Be brief."], ["Be a dog."], ["Be brief."], ["Be brief."]]
    assert await client.texts() == ["one", "1 ", "two", "1 ", "three", "1 ", "three", "1 "]


async def test_it_has_at_most_10000_characters(start: Any, client_of: Any, stepper: Any) -> None:
    engine = stepper()
    client = client_of(
        await start(ChatStream(engine=engine, allow_system_prompt=True, params=GenerationParams(max_new_tokens=1)))
    )
    async with client.post(user_input="hi", system="x" * 10_001) as response:
        assert response.status == 422
        assert (await response.json())["detail"] == "system: must be a string of at most 10000 characters."
    engine.allow(1)
    await client.say("hi", system="猫" * 10_000)
    assert engine.calls == [[{"role": "system", "content": "猫" * 10_000}, {"role": "user", "content": "hi"}]]
