"""chatstream's samplers."""

from __future__ import annotations

from typing import Any

from aiochatstream import AbstractChatPrompt
from aiochatstream.compat import ChatStream, TokenSamplerHft, TokenSamplerIsok
from tests.engines.transformers.tiny_models import BYTES, tiny
from tests.helpers import ClientOf, StartServer

DRAWN = {"temperature": 1, "seed": 5}


class Plain(AbstractChatPrompt):
    def create_prompt(self) -> str:
        return self.message


async def answer(start: StartServer, client_of: ClientOf, token_sampler: Any, **params: Any) -> str:
    chat_stream = ChatStream(
        model=tiny(), tokenizer=BYTES, chat_prompt_clazz=Plain, token_sampler=token_sampler, max_new_tokens=16
    )
    client = client_of(await start(chat_stream))
    return str((await client.say("Hello", params=DRAWN | params))["text"])


async def test_hft_is_the_built_in_sampler(start: StartServer, client_of: ClientOf) -> None:
    drawn = await answer(start, client_of, TokenSamplerHft(), top_k=50, top_p=0.4)
    assert drawn == await answer(start, client_of, None, top_k=50, top_p=0.4)


async def test_isok_draws_from_top_k_and_ignores_top_p(start: StartServer, client_of: ClientOf) -> None:
    drawn = await answer(start, client_of, TokenSamplerIsok(), top_k=50, top_p=0.01)
    assert drawn == await answer(start, client_of, None, top_k=50, top_p=1)
    assert drawn != await answer(start, client_of, None, top_k=50, top_p=0.01)
