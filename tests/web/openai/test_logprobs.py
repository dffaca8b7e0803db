"""Formats of logprobs."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from aiochatstream.engines import TokenLogprob
from aiochatstream.web.openai.logprobs import LogprobFormatter, TextOffsets

TEXT = "a東🗼b"


@pytest.fixture
def ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(TEXT)["input_ids"]
    assert len(ids) > len(TEXT), "the tokens contain no parts of characters"
    return ids


def bytes_of(token: str) -> bytes:
    if not token.startswith("bytes:"):
        return token.encode()
    return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))


def test_parts_of_characters_are_bytes_and_count_when_complete(
    tokenizer: PreTrainedTokenizerBase, ids: list[int]
) -> None:
    formatter, offsets = LogprobFormatter(tokenizer), TextOffsets()
    entries = [formatter.for_completion([TokenLogprob(token_id, -1.0)], offsets) for token_id in ids]
    tokens = [token for entry in entries for token in entry["tokens"]]
    text_offsets = [offset for entry in entries for offset in entry["text_offset"]]
    pieces = [bytes_of(token) for token in tokens]
    assert b"".join(pieces).decode() == TEXT
    assert "\ufffd" not in "".join(tokens)
    texts = [b"".join(pieces[:at]) for at in range(len(pieces))]
    assert text_offsets == [len(text.decode(errors="ignore")) for text in texts]
    assert text_offsets[0] == 0
    assert text_offsets[-1] == 3


def test_top_logprobs_include_the_token_and_the_more_likely_of_equal_texts(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    a, b, c = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    formatter = LogprobFormatter(tokenizer)
    logprobs = formatter.for_completion([TokenLogprob(c, -5.0, ((a, -0.1), (b, -3.0)))], TextOffsets())
    assert logprobs["top_logprobs"] == [{"a": -0.1, "b": -3.0, "c": -5.0}]
    assert formatter.for_completion([TokenLogprob(c, -5.0)], TextOffsets())["top_logprobs"] == [{}]
    assert formatter.for_completion([TokenLogprob(a, -9.0, ((a, -0.1),))], TextOffsets())["top_logprobs"] == [
        {"a": -0.1}
    ]
