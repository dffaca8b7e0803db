"""Echoed prompts with logprobs, by which evaluation harnesses score continuations."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aiochatstream import ChatStream, GenerationParams
from aiochatstream.prompts.presets.base_model import ChatPromptCyberAgentOpenCalm
from aiochatstream.web.openai import completions
from tests.engines.tokenizers import BYTE_FALLBACK
from tests.engines.transformers.tiny_models import BYTES, tiny
from tests.helpers import MakeStepper, Server, StartServer, until
from tests.small_engine import SmallEngine
from tests.web.openai.helpers import OpenAIClientOf

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

CONTEXT, CONTINUATION = "The capital of 日本🗼 is", " Tokyo, a city."


@pytest.fixture
async def served(start: StartServer, small_engine: SmallEngine) -> Server:
    chat_stream = ChatStream(
        engine=small_engine, num_of_concurrent_executions=2, params=GenerationParams(max_new_tokens=8)
    )
    return await start(chat_stream)


@pytest.fixture
def complete(served: Server, openai_of: OpenAIClientOf) -> Any:
    """Return a client's function, not strict: its type does not allow the null that OpenAI's API sends in logprobs."""
    return openai_of(served, strict=False).completions.create


async def test_echoed_logprobs_match_the_model_at_the_positions_that_harnesses_read(
    complete: Any, untouched_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """With more prompts than slots, as text and as token ids. The slices are those of lm-evaluation-harness."""
    ids = tokenizer(CONTEXT + CONTINUATION)["input_ids"]
    length = len(tokenizer(CONTEXT)["input_ids"])
    others = [tokenizer(text)["input_ids"] for text in ("One two three.", "Yes", "a b c d e")]
    with torch.inference_mode():
        expected = untouched_model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    for prompts in ([CONTEXT + CONTINUATION, "One two three.", "Yes", "a b c d e"], [ids, *others]):
        answer = await complete(model="", prompt=prompts, echo=True, max_tokens=1, logprobs=1, temperature=0, seed=1234)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        logprobs = answer.choices[0].logprobs
        assert len(logprobs.tokens) == len(ids) + 1
        assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
        values = [float(expected[at - 1, ids[at]]) for at in range(length, len(ids))]
        assert logprobs.token_logprobs[length:-1] == pytest.approx(values, abs=1e-3)
        best = [float(expected[at - 1].max()) for at in range(length, len(ids))]
        maxima = [max(top.values()) for top in logprobs.top_logprobs[length:-1]]
        assert maxima == pytest.approx(best, abs=1e-3)
        assert logprobs.text_offset[length] == len(CONTEXT)
        assert logprobs.text_offset[-1] == len(CONTEXT + CONTINUATION)
        assert answer.choices[0].text.startswith(CONTEXT + CONTINUATION)
        assert answer.usage.prompt_tokens == len(ids) + sum(map(len, others))


async def test_with_max_tokens_0_nothing_is_generated(complete: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    count = len(tokenizer(CONTEXT)["input_ids"])
    fields = {"model": "", "prompt": CONTEXT, "max_tokens": 0}
    scored = await complete(**fields, echo=True, logprobs=2)
    assert (scored.choices[0].text, scored.choices[0].finish_reason) == (CONTEXT, "length")
    assert len(scored.choices[0].logprobs.tokens) == count
    assert (scored.usage.prompt_tokens, scored.usage.completion_tokens) == (count, 0)
    plain = await complete(**fields)
    assert (plain.choices[0].text, plain.choices[0].finish_reason, plain.choices[0].logprobs) == ("", "length", None)


async def test_a_stream_contains_the_same_logprobs(complete: Any) -> None:
    fields = {"model": "", "prompt": CONTEXT, "echo": True, "max_tokens": 3, "logprobs": 2, "temperature": 0}
    whole = (await complete(**fields)).choices[0]
    chunks = [chunk.choices[0] async for chunk in await complete(**fields, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    pieces = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for logprobs in pieces for value in getattr(logprobs, name)] == getattr(whole.logprobs, name)


async def test_too_many_logprobs_for_one_answer_are_refused(complete: Any, served: Server) -> None:
    fields = {"model": "", "max_tokens": 0, "echo": True, "logprobs": 15}
    with pytest.raises(
        openai.BadRequestError, match="1 to 4096 tokens in total with 16 logprobs each, not 4098"
    ) as refused:
        await complete(**fields, prompt=[" a" * 2000, " a" * 2000, " a" * 98])
    assert refused.value.param == "prompt"
    assert served.idle


async def test_no_echo_is_computed_for_a_refused_request(
    start: StartServer, stepper: MakeStepper, openai_of: OpenAIClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    echoed: list[str] = []

    def make_echo(prompt: str, tokenizer: None, formatter: None) -> completions.Echo:
        echoed.append(prompt)
        return completions.Echo(prompt, 0)

    monkeypatch.setattr(completions, "make_echo", make_echo)
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine, num_of_concurrent_executions=1, max_queue_size=0, params=GenerationParams(max_new_tokens=1)
        )
    )
    create = openai_of(server).completions.create
    running = asyncio.create_task(create(model="", prompt="first", echo=True))
    await until(lambda: echoed == ["first"])
    with pytest.raises(openai.InternalServerError):
        await create(model="", prompt="second", echo=True)
    assert echoed == ["first"]
    engine.allow(1)
    assert (await running).choices[0].text == "first1 "


@pytest.mark.parametrize(
    ("tokenizer", "offsets"),
    [(BYTES, [0, 1, 2]), (BYTE_FALLBACK, [0, 0, 1])],  # "a", "b", </s>; "▁", "a", "b"
    ids=["bytes", "SentencePiece"],
)
async def test_offsets_count_from_the_echoed_text_and_include_every_token(
    start: StartServer, openai_of: OpenAIClientOf, tokenizer: PreTrainedTokenizerBase, offsets: list[int]
) -> None:
    params = GenerationParams(temperature=0.0, max_new_tokens=1)
    server = await start(
        ChatStream(model=tiny(), tokenizer=tokenizer, chat_prompt_clazz=ChatPromptCyberAgentOpenCalm, params=params)
    )
    create = openai_of(server, strict=False).completions.create
    ids = tokenizer("ab")["input_ids"]
    prompts: list[str | list[int]] = ["ab", ids]
    for prompt in prompts:
        answer = await create(
            model="", prompt=prompt, echo=True, logprobs=0, logit_bias={str(tokenizer.eos_token_id): 100}
        )
        logprobs = answer.choices[0].logprobs
        assert answer.choices[0].text.startswith("ab")
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.text_offset is not None
        assert logprobs.text_offset[:-1] == offsets
        assert logprobs.tokens[-1] == "</s>"
