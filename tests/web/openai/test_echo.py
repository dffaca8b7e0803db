"""Prompts with their logprobs before the answers, as evaluation harnesses score continuations by."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
import torch

from aiochatstream import ChatStream, GenerationParams
from aiochatstream.prompts.presets.base_model import ChatPromptCyberAgentOpenCalm
from aiochatstream.web.openai import completions
from tests.engines.tokenizers import BYTE_FALLBACK
from tests.engines.transformers.tiny_models import BYTES, tiny
from tests.helpers import Server, until

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

CONTEXT, CONTINUATION = "The capital of 日本🗼 is", " Tokyo, a city."


@pytest.fixture
async def served(start: Any, model: Any, tokenizer: Any) -> Server:
    chat_stream = ChatStream(
        model=model, tokenizer=tokenizer, num_of_concurrent_executions=2, params=GenerationParams(max_new_tokens=8)
    )
    server: Server = await start(chat_stream)
    return server


@pytest.fixture
def complete(served: Server, openai_of: Any) -> Any:
    """Its type knows no null among logprobs, which OpenAI's own API sends."""
    return openai_of(served, _strict_response_validation=False).completions.create


async def test_a_harness_finds_the_logprobs_of_its_continuations(
    complete: Any, untouched_model: Any, tokenizer: Any
) -> None:
    """More prompts than slots, as text or as token ids; sliced as lm-evaluation-harness does."""
    ids = tokenizer(CONTEXT + CONTINUATION)["input_ids"]
    length = len(tokenizer(CONTEXT)["input_ids"])
    others = [tokenizer(text)["input_ids"] for text in ("One two three.", "Yes", "a b c d e")]
    with torch.inference_mode():
        expected = untouched_model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    for prompts in ([CONTEXT + CONTINUATION, "One two three.", "Yes", "a b c d e"], [ids, *others]):
        answer = await complete(model="", prompt=prompts, echo=True, max_tokens=1, logprobs=1, temperature=0, seed=1234)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        told = answer.choices[0].logprobs
        assert len(told.tokens) == len(ids) + 1
        assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
        own = [float(expected[at - 1, ids[at]]) for at in range(length, len(ids))]
        assert told.token_logprobs[length:-1] == pytest.approx(own, abs=1e-3)
        best = [float(expected[at - 1].max()) for at in range(length, len(ids))]
        found = [max(top.values()) for top in told.top_logprobs[length:-1]]
        assert found == pytest.approx(best, abs=1e-3)
        assert told.text_offset[length] == len(CONTEXT)
        assert told.text_offset[-1] == len(CONTEXT + CONTINUATION)
        assert answer.choices[0].text.startswith(CONTEXT + CONTINUATION)
        assert answer.usage.prompt_tokens == len(ids) + sum(map(len, others))


async def test_with_max_tokens_0_the_prompt_is_read_and_nothing_is_written(complete: Any, tokenizer: Any) -> None:
    count = len(tokenizer(CONTEXT)["input_ids"])
    asked = {"model": "", "prompt": CONTEXT, "max_tokens": 0}
    scored = await complete(**asked, echo=True, logprobs=2)
    assert (scored.choices[0].text, scored.choices[0].finish_reason) == (CONTEXT, "length")
    assert len(scored.choices[0].logprobs.tokens) == count
    assert (scored.usage.prompt_tokens, scored.usage.completion_tokens) == (count, 0)
    plain = await complete(**asked)
    assert (plain.choices[0].text, plain.choices[0].finish_reason, plain.choices[0].logprobs) == ("", "length", None)
    full = await complete(model="", prompt=" a" * 2048, max_tokens=0)
    assert full.usage.prompt_tokens == 2048


async def test_a_stream_tells_the_same(complete: Any) -> None:
    asked = {"model": "", "prompt": CONTEXT, "echo": True, "max_tokens": 3, "logprobs": 2, "temperature": 0}
    whole = (await complete(**asked)).choices[0]
    chunks = [chunk.choices[0] async for chunk in await complete(**asked, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    told = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [one for logprobs in told for one in getattr(logprobs, name)] == getattr(whole.logprobs, name)


async def test_too_many_logprobs_for_one_answer_are_refused(complete: Any, served: Server) -> None:
    asked = {"model": "", "max_tokens": 0, "echo": True, "logprobs": 15}
    with pytest.raises(
        openai.BadRequestError, match="1 to 4096 tokens in all with 16 logprobs each, not 4098"
    ) as refused:
        await complete(**asked, prompt=[" a" * 2000, " a" * 2000, " a" * 98])
    assert refused.value.param == "prompt"
    assert served.idle


async def test_no_work_is_done_for_the_echo_of_a_refused_request(
    start: Any, stepper: Any, openai_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(completions, "_echo", lambda prompt, *given: made.append(prompt) or completions.Echo(prompt, 0))
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine, num_of_concurrent_executions=1, max_queue_size=0, params=GenerationParams(max_new_tokens=1)
        )
    )
    create = openai_of(server).completions.create
    running = asyncio.create_task(create(model="", prompt="first", echo=True))
    await until(lambda: made == ["first"])
    with pytest.raises(openai.InternalServerError):
        await create(model="", prompt="second", echo=True)
    assert made == ["first"]
    engine.allow(1)
    assert (await running).choices[0].text == "first1 "


@pytest.mark.parametrize(
    ("tokenizer", "offsets"),
    [(BYTES, [0, 1, 2]), (BYTE_FALLBACK, [0, 0, 1])],  # a, b and an end; a space, a and b
    ids=["bytes", "SentencePiece"],
)
async def test_offsets_are_those_of_the_echoed_text_and_no_token_is_left_out(
    start: Any, openai_of: Any, tokenizer: Any, offsets: list[int]
) -> None:
    params = GenerationParams(temperature=0.0, max_new_tokens=1)
    server = await start(
        ChatStream(model=tiny(), tokenizer=tokenizer, chat_prompt_clazz=ChatPromptCyberAgentOpenCalm, params=params)
    )
    create = openai_of(server, _strict_response_validation=False).completions.create
    ids = tokenizer("ab")["input_ids"]
    for prompt in ("ab", ids):
        answer = await create(
            model="", prompt=prompt, echo=True, logprobs=0, logit_bias={str(tokenizer.eos_token_id): 100}
        )
        told = answer.choices[0].logprobs
        assert answer.choices[0].text.startswith("ab")
        assert told.text_offset[:-1] == offsets
        assert told.tokens[-1] == "</s>"
