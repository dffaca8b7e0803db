"""How likely tokens were, as OpenAI's API tells it."""

from __future__ import annotations

from typing import Any

import pytest

from aiochatstream.engines import TokenLogprob
from aiochatstream.web.openai.logprobs import LogprobWriter, Offsets

TEXT = "a東🗼b"


@pytest.fixture
def ids(tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(TEXT)["input_ids"]
    assert len(ids) > len(TEXT), "no character is in parts"
    return ids


def bytes_of(token: str) -> bytes:
    if not token.startswith("bytes:"):
        return token.encode()
    return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))


def test_parts_of_characters_are_told_as_bytes_and_counted_when_they_are_whole(tokenizer: Any, ids: list[int]) -> None:
    writer, offsets = LogprobWriter(tokenizer), Offsets()
    told = [writer.of_text([TokenLogprob(token_id, -1.0)], offsets) for token_id in ids]
    tokens = [token for one in told for token in one["tokens"]]
    begins = [begin for one in told for begin in one["text_offset"]]
    whole = [bytes_of(token) for token in tokens]
    assert b"".join(whole).decode() == TEXT
    assert "\ufffd" not in "".join(tokens)
    so_far = [b"".join(whole[:at]) for at in range(len(whole))]
    assert begins == [len(text.decode(errors="ignore")) for text in so_far]
    assert begins[0] == 0
    assert begins[-1] == 3


def test_the_token_itself_is_among_the_likeliest_and_of_one_text_the_likelier_counts(tokenizer: Any) -> None:
    a, b, c = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    writer = LogprobWriter(tokenizer)
    told = writer.of_text([TokenLogprob(c, -5.0, ((a, -0.1), (b, -3.0)))], Offsets())
    assert told["top_logprobs"] == [{"a": -0.1, "b": -3.0, "c": -5.0}]
    assert writer.of_text([TokenLogprob(c, -5.0)], Offsets())["top_logprobs"] == [{}]
    assert writer.of_text([TokenLogprob(a, -9.0, ((a, -0.1),))], Offsets())["top_logprobs"] == [{"a": -0.1}]
