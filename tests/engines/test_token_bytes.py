"""Tests of the bytes of single tokens."""

from __future__ import annotations

from typing import Any

import pytest

from aiochatstream.engines import TokenBytes
from tests.engines.tokenizers import BYTE_FALLBACK, IN_PYTHON, TEXTS, ids_of


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_the_tokens_join_to_the_text(tokenizer: Any, text: str) -> None:
    token_bytes = TokenBytes(tokenizer)
    parts = [token_bytes.of(token_id) for token_id in ids_of(tokenizer, text)]
    assert b"".join(parts) == text.encode()
    assert all(parts)


@pytest.mark.parametrize("text", TEXTS)
def test_with_byte_fallback_the_text_starts_with_a_space(text: str) -> None:
    assert b"".join(map(TokenBytes(BYTE_FALLBACK).of, ids_of(BYTE_FALLBACK, text))) == f" {text}".encode()


def test_a_token_may_be_a_part_of_a_character(tokenizer: Any) -> None:
    parts = [TokenBytes(tokenizer).of(token_id) for token_id in ids_of(tokenizer, "鬱")]
    assert len(parts) > 1
    assert b"".join(parts) == "鬱".encode()


def test_special_tokens_are_their_names_and_unknown_tokens_are_empty(tokenizer: Any) -> None:
    assert TokenBytes(tokenizer).of(tokenizer.eos_token_id) == b"<|im_end|>"
    assert TokenBytes(tokenizer).of(len(tokenizer) + 5) == b""
    assert TokenBytes(BYTE_FALLBACK).of(BYTE_FALLBACK.eos_token_id) == b"</s>"


def test_python_tokenizers_return_whole_characters() -> None:
    assert b"".join(map(TokenBytes(IN_PYTHON).of, ids_of(IN_PYTHON, "a <b>\n"))) == b"a <b>\n"
