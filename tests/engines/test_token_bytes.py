"""What single tokens stand for."""

from __future__ import annotations

from typing import Any

import pytest

from aiochatstream.engines import TokenBytes
from tests.engines.transformers.test_detokenizing import BYTE_FALLBACK, IN_PYTHON, TEXTS, ids_of


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_a_texts_tokens_are_the_texts(tokenizer: Any, text: str) -> None:
    single = TokenBytes(tokenizer)
    pieces = [single.of(token_id) for token_id in ids_of(tokenizer, text)]
    assert b"".join(pieces) == text.encode()
    assert all(pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_with_byte_fallback_a_space_stands_before_them(text: str) -> None:
    assert b"".join(map(TokenBytes(BYTE_FALLBACK).of, ids_of(BYTE_FALLBACK, text))) == f" {text}".encode()


def test_a_token_can_be_a_part_of_a_character(tokenizer: Any) -> None:
    pieces = [TokenBytes(tokenizer).of(token_id) for token_id in ids_of(tokenizer, "鬱")]
    assert len(pieces) > 1
    assert b"".join(pieces) == "鬱".encode()


def test_special_tokens_are_their_names_and_unknown_ones_nothing(tokenizer: Any) -> None:
    assert TokenBytes(tokenizer).of(tokenizer.eos_token_id) == b"<|im_end|>"
    assert TokenBytes(tokenizer).of(len(tokenizer) + 5) == b""
    assert TokenBytes(BYTE_FALLBACK).of(BYTE_FALLBACK.eos_token_id) == b"</s>"


def test_a_tokenizer_written_in_python_tells_whole_characters() -> None:
    assert b"".join(map(TokenBytes(IN_PYTHON).of, ids_of(IN_PYTHON, "a <b>\n"))) == b"a <b>\n"
