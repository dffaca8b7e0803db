"""POST /chat_stream with the real small model, over real sockets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aiochatstream import ChatStream

QUESTION = "What is the capital of France?"


@pytest.fixture
async def server(start: Any, model: Any, tokenizer: Any) -> Any:
    return await start(ChatStream(model=model, tokenizer=tokenizer, temperature=0, max_new_tokens=24, max_queue_size=8))


def reference(model: Any, tokenizer: Any, messages: list[dict[str, str]], max_new_tokens: int = 24) -> list[int]:
    """The token ids that ``model.generate`` answers with, greedy."""
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return ids


async def test_the_answer_streams_in_chunks_and_is_what_generate_gives(
    server: Any, client_of: Any, model: Any, tokenizer: Any
) -> None:
    chunks = []
    async with client_of(server).post(user_input=QUESTION) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        async for chunk, _ in response.content.iter_chunks():
            chunks.append(chunk.decode())
    ids = reference(model, tokenizer, [{"role": "user", "content": QUESTION}])
    assert "".join(chunks) == tokenizer.decode(ids, skip_special_tokens=True)
    assert "Paris" in "".join(chunks)
    assert len(chunks) > 1
