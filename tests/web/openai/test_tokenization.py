"""Token ids of prompts, and their texts."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from aiochatstream import ChatStream
from tests.helpers import Client, ClientOf, Server, StartServer, echo
from tests.small_engine import SmallEngine
from tests.web.openai.helpers import tool

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

KEY = "a-key-of-thirty-characters----"
MESSAGES = [{"role": "user", "content": "Grüße 🤔"}]


@pytest.fixture
async def server(start: StartServer, small_engine: SmallEngine) -> Server:
    return await start(ChatStream(engine=small_engine, max_queue_size=0))


async def post(client: Client, path: str, **body: Any) -> tuple[int, Any]:
    async with client.post(path, **body) as response:
        return response.status, await response.json()


async def test_tokens_of_texts(server: Server, client_of: ClientOf, tokenizer: PreTrainedTokenizerBase) -> None:
    client = client_of(server)
    ids = tokenizer("Grüße 🤔")["input_ids"]
    status, body = await post(client, "/tokenize", prompt="Grüße 🤔", model="")
    assert (status, body) == (200, {"count": len(ids), "max_model_len": 2048, "tokens": ids})
    _, body = await post(client, "/tokenize", prompt="Grüße 🤔", return_token_strs=True)
    assert body["token_strs"] == tokenizer.convert_ids_to_tokens(ids)
    assert await post(client, "/detokenize", tokens=ids) == (200, {"prompt": "Grüße 🤔"})
    assert await post(client, "/detokenize", tokens=[]) == (200, {"prompt": ""})


async def test_tokens_of_chats_are_those_of_their_answers_prompt(server: Server, client_of: ClientOf) -> None:
    client = client_of(server)
    for more in (
        {},
        {"add_generation_prompt": True},
        {"tools": [tool("f")]},
        {"messages": [*MESSAGES, {"role": "assistant", "content": "An"}], "continue_final_message": True},
        {"messages": [*MESSAGES, {"role": "assistant", "content": ""}], "continue_final_message": True},
    ):
        body: dict[str, Any] = {"messages": MESSAGES, **more}
        _, answer = await post(client, "/v1/chat/completions", **body, max_tokens=1, return_token_ids=True)
        _, tokens = await post(client, "/tokenize", **body)
        assert tokens["tokens"] == answer["prompt_token_ids"]
        assert tokens["count"] == answer["usage"]["prompt_tokens"]
        _, text = await post(client, "/detokenize", tokens=tokens["tokens"])
        assert text["prompt"].startswith("<|im_start|>system\n")


async def test_prompts_longer_than_the_context_are_counted(server: Server, client_of: ClientOf) -> None:
    client = client_of(server)
    _, body = await post(client, "/tokenize", prompt=" word" * 3000)
    assert (body["count"], body["max_model_len"]) == (3000, 2048)
    status, body = await post(client, "/tokenize", prompt=" word" * 100_000)
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")


INVALID: list[tuple[str, dict[str, Any], str]] = [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "x", "messages": MESSAGES}, "prompt"),
    ("/tokenize", {"prompt": "x", "add_special_tokens": False}, "add_special_tokens"),
    ("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens"),
    ("/tokenize", {"messages": MESSAGES, "add_generation_prompt": False}, "add_generation_prompt"),
    ("/tokenize", {"messages": MESSAGES, "continue_final_message": True}, "continue_final_message"),
    ("/tokenize", {"messages": MESSAGES, "chat_template": "x"}, "chat_template"),
    ("/tokenize", {"messages": MESSAGES, "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": [10**6]}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens"),
]


async def test_invalid_requests(server: Server, client_of: ClientOf) -> None:
    client = client_of(server)
    for path, body, param in INVALID:
        status, error = await post(client, path, **body)
        assert (status, error["error"]["param"]) == (400, param), body


async def test_keys_models_and_tokenizers_are_required(start: StartServer, client_of: ClientOf) -> None:
    client = client_of(await start(ChatStream(engine=echo), api_keys=[KEY]))
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
        status, error = await post(client, path, **body)
        assert (status, error["error"]["code"]) == (401, "invalid_api_key")
        client.session.headers["Authorization"] = f"Bearer {KEY}"
        status, error = await post(client, path, **body, model="other")
        assert (status, error["error"]["code"]) == (404, "model_not_found")
        status, error = await post(client, path, **body)
        assert (status, error["error"]["message"]) == (400, "This server's engine has no tokenizer.")
        del client.session.headers["Authorization"]
