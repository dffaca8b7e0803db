"""Token ids in responses, on the real small model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aiochatstream import ChatStream, GenerationParams
from tests.helpers import Client, ClientOf, StartServer, echo
from tests.small_engine import SmallEngine

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

MESSAGES = [{"role": "user", "content": "Repeat: 🤔🌞🤔🌞"}]  # of which the model makes an answer of emojis
TOKENS = 10


@pytest.fixture
async def client(start: StartServer, client_of: ClientOf, small_engine: SmallEngine) -> Client:
    params = GenerationParams(max_new_tokens=TOKENS, temperature=0.0)
    return client_of(await start(ChatStream(engine=small_engine, params=params)))


async def ask(client: Client, path: str, **body: Any) -> dict[str, Any]:
    async with client.post(path, **body) as response:
        data: dict[str, Any] = await response.json()
        assert response.status == 200, data
        return data


async def chunks_of(client: Client, path: str, **body: Any) -> list[dict[str, Any]]:
    async with client.post(path, stream=True, **body) as response:
        lines = (await response.text()).split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def text_of(chunk: dict[str, Any]) -> str:
    choice = chunk["choices"][0]
    text: str = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
    return text


@pytest.fixture
def prompt_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True)["input_ids"]
    return ids


async def greedy_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    inputs = tokenizer.pad({"input_ids": [ids]}, return_tensors="pt")
    output = await asyncio.to_thread(model.generate, **inputs, max_new_tokens=TOKENS, do_sample=False)
    generated: list[int] = output[0, len(ids) :].tolist()
    return generated


async def test_ids_are_exact_whole_and_streamed(
    client: Client, untouched_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int]
) -> None:
    expected = await greedy_ids(untouched_model, tokenizer, prompt_ids)
    chat = await ask(client, "/v1/chat/completions", messages=MESSAGES, return_token_ids=True)
    text = await ask(client, "/v1/completions", prompt=prompt_ids, return_token_ids=True)
    assert chat["prompt_token_ids"] == text["choices"][0]["prompt_token_ids"] == prompt_ids
    assert chat["choices"][0]["token_ids"] == text["choices"][0]["token_ids"] == expected
    for path, body in (("/v1/chat/completions", {"messages": MESSAGES}), ("/v1/completions", {"prompt": prompt_ids})):
        chunks = await chunks_of(client, path, return_token_ids=True, **body)
        carriers = chunks if "messages" in body else [chunk["choices"][0] for chunk in chunks]
        assert [carrier.get("prompt_token_ids") for carrier in carriers] == [prompt_ids, *[None] * (len(chunks) - 1)]
        ids = [token_id for chunk in chunks for token_id in chunk["choices"][0].get("token_ids", ())]
        assert ids == expected
        assert "".join(map(text_of, chunks)) == text["choices"][0]["text"]


async def test_a_prompt_with_the_ids_so_far_continues_the_undisturbed_text(
    client: Client, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Also if the ids end within a character: the rest of the answer contains it."""
    prompt = tokenizer("🤔🌞👒🤔🌞👒🤔🌞👒🤔")["input_ids"]
    chunks = await chunks_of(client, "/v1/completions", prompt=prompt, max_tokens=9, return_token_ids=True)
    whole = "".join(map(text_of, chunks))
    counts = [len(chunk["choices"][0]["token_ids"]) for chunk in chunks if text_of(chunk)]
    assert counts == [3] * len(whole)  # an emoji has three tokens
    ids = [token_id for chunk in chunks for token_id in chunk["choices"][0].get("token_ids", ())]
    for count in range(1, 9):
        rest = await ask(client, "/v1/completions", prompt=[*prompt, *ids[:count]], max_tokens=9 - count)
        assert whole[: count // 3] + rest["choices"][0]["text"] == whole


async def test_several_answers_have_their_own_ids(client: Client, prompt_ids: list[int]) -> None:
    body = {"prompt": ["One", "Two"], "n": 2, "max_tokens": 5, "temperature": 1.5, "return_token_ids": True}
    whole = await ask(client, "/v1/completions", seed=3, **body)
    streamed: dict[int, list[int]] = {index: [] for index in range(4)}
    prompts: dict[int, list[int]] = {}
    for chunk in await chunks_of(client, "/v1/completions", seed=3, **body):
        choice = chunk["choices"][0]
        streamed[choice["index"]] += choice.get("token_ids", ())
        prompts |= {choice["index"]: choice["prompt_token_ids"]} if "prompt_token_ids" in choice else {}
    assert streamed == {choice["index"]: choice["token_ids"] for choice in whole["choices"]}
    assert prompts == {choice["index"]: choice["prompt_token_ids"] for choice in whole["choices"]}
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]


async def test_the_count_of_tokens_includes_the_one_that_ends_the_answer(
    client: Client, tokenizer: PreTrainedTokenizerBase
) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    for body in ({}, {"stop": ["never"]}):
        answer = await ask(client, "/v1/chat/completions", messages=messages, return_token_ids=True, **body)
        choice = answer["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert choice["token_ids"][-1] == tokenizer.eos_token_id
        assert answer["usage"]["completion_tokens"] == len(choice["token_ids"])
        text = tokenizer.decode(choice["token_ids"], skip_special_tokens=True)
        assert choice["message"]["content"] == text
    include_usage = {"stream_options": {"include_usage": True}}
    *_, last = await chunks_of(client, "/v1/chat/completions", messages=messages, **include_usage)
    assert last["usage"] == answer["usage"]


async def test_without_a_request_or_a_tokenizer_there_are_no_ids(
    client: Client, start: StartServer, client_of: ClientOf, prompt_ids: list[int]
) -> None:
    scripted = client_of(await start(ChatStream(engine=echo)))
    for user, body in ((client, {}), (client, {"return_token_ids": False}), (scripted, {"return_token_ids": True})):
        for path, prompt in (("/v1/chat/completions", {"messages": MESSAGES}), ("/v1/completions", {"prompt": "Hi"})):
            answer = await ask(user, path, max_tokens=3, **prompt, **body)
            streamed = await chunks_of(user, path, max_tokens=3, **prompt, **body)
            assert "token_ids" not in json.dumps([answer, *streamed])
