"""Tests of the system prompt of a request."""

from __future__ import annotations

from aiochatstream import ChatPrompt, ChatStream, GenerationParams
from tests.helpers import ClientOf, MakeStepper, StartServer, Stepper


class OwnSystem(ChatPrompt):
    system = "Be brief."


async def test_the_system_prompt_replaces_the_servers_for_one_answer(start: StartServer, client_of: ClientOf) -> None:
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
    systems = [[message["content"] for message in messages if message["role"] == "system"] for messages in engine.calls]
    assert systems == [["猫として話す。"], ["Be brief."], ["Be a dog."], ["Be brief."], ["Be brief."]]
    assert await client.texts() == ["one", "1 ", "two", "1 ", "three", "1 ", "three", "1 "]


async def test_the_system_prompt_has_at_most_10000_characters(
    start: StartServer, client_of: ClientOf, stepper: MakeStepper
) -> None:
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
