"""Completions without a real model."""

from __future__ import annotations

import openai
import pytest
from transformers import PreTrainedTokenizerBase

from aiochatstream import ChatStream, GenerationParams, Limits
from aiochatstream.prompts.presets.base_model import ChatPromptCyberAgentOpenCalm
from tests.engines.tokenizers import BYTE_FALLBACK
from tests.engines.transformers.tiny_models import BYTES, tiny
from tests.helpers import StartServer, echo
from tests.web.openai.helpers import HI, OpenAIClientOf


def tiny_chat_stream(
    tokenizer: PreTrainedTokenizerBase, max_new_tokens: int = 1, context_len: int | None = None
) -> ChatStream:
    """Return a ChatStream with a tiny model whose prompts are plain texts."""
    return ChatStream(
        model=tiny(),
        tokenizer=tokenizer,
        chat_prompt_clazz=ChatPromptCyberAgentOpenCalm,
        params=GenerationParams(max_new_tokens=max_new_tokens, temperature=0.0),
        limits=Limits(context_len=context_len),
    )


async def test_each_prompt_of_a_completion_has_n_answers(start: StartServer, openai_of: OpenAIClientOf) -> None:
    client = openai_of(await start(ChatStream(engine=echo, num_of_concurrent_executions=4)))
    answer = await client.completions.create(model="", prompt=["a", "b"], n=2, echo=True)
    assert [choice.text for choice in answer.choices] == ["aa ", "aa ", "bb ", "bb "]


async def test_too_many_answers_are_refused_by_n_or_prompt(start: StartServer, openai_of: OpenAIClientOf) -> None:
    create = openai_of(await start(ChatStream(engine=echo))).completions.create
    for prompts, n, param in ((3, 86, "n"), (257, 1, "prompt")):
        with pytest.raises(openai.BadRequestError, match="1 to 256") as refused:
            await create(model="", prompt=["a"] * prompts, n=n)
        assert refused.value.param == param


async def test_a_completion_continues_within_a_text(start: StartServer, openai_of: OpenAIClientOf) -> None:
    """Llama's tokenizer drops the space before the first word of a text, but an answer continues its prompt."""
    space, a = BYTE_FALLBACK.convert_tokens_to_ids(["▁", "a"])
    server = await start(tiny_chat_stream(BYTE_FALLBACK))
    for token, text in ((space, " "), (a, "a")):
        answer = await openai_of(server).completions.create(model="", prompt="ab", logit_bias={str(token): 100})
        assert answer.choices[0].text == text


async def test_an_answer_or_a_prompt_may_fill_the_context(start: StartServer, openai_of: OpenAIClientOf) -> None:
    create = openai_of(await start(tiny_chat_stream(BYTES, max_new_tokens=32, context_len=64))).completions.create
    for requested in (openai.omit, 4000):
        answer = await create(model="", prompt=[100] * 62, max_tokens=requested)
        assert answer.usage is not None
        assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (2, "length")
    full = await create(model="", prompt=[100] * 64, max_tokens=0)
    assert full.usage is not None
    assert full.usage.prompt_tokens == 64


async def test_an_answer_of_lone_bytes_agrees_with_its_logprobs(start: StartServer, openai_of: OpenAIClientOf) -> None:
    """Except for the last byte, an incomplete character at the end of the answer."""
    byte = BYTE_FALLBACK.convert_tokens_to_ids("<0xE6>")
    create = openai_of(await start(tiny_chat_stream(BYTE_FALLBACK, max_new_tokens=41))).completions.create
    prompts: list[str | list[int]] = ["ab \ufffd", [byte]]
    for prompt in prompts:
        answer = await create(model="", prompt=prompt, logit_bias={str(byte): 100}, logprobs=0)
        choice = answer.choices[0]
        assert choice.text == "\ufffd" * 40
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == ["bytes:\\xe6"] * 41
        assert choice.logprobs.text_offset == list(range(41))


async def test_an_empty_answer_streams_no_empty_logprobs(start: StartServer, openai_of: OpenAIClientOf) -> None:
    server = await start(tiny_chat_stream(BYTES, max_new_tokens=256))
    end = {str(BYTES.eos_token_id): 100}
    client = openai_of(server, strict=False)
    texts = await client.completions.create(model="", prompt="ab", logprobs=1, logit_bias=end, stream=True)
    chunks = [chunk.choices[0] async for chunk in texts]
    assert [(chunk.text, chunk.logprobs, chunk.finish_reason) for chunk in chunks] == [("", None, "stop")]
    chat = await client.chat.completions.create(model="", messages=HI, logprobs=True, logit_bias=end, stream=True)
    assert [chunk.choices[0].logprobs async for chunk in chat] == [None, None]
