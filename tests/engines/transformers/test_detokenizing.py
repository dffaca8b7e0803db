"""Tests of incremental detokenization."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import ByT5Tokenizer

from aiochatstream.engines.token_bytes import byte_level_alphabet
from aiochatstream.engines.transformers.detokenizing import detokenizer
from tests.engines.tokenizers import BYTE_FALLBACK, CLEANING, IN_PYTHON, SPACE_MOVING, TEXTS, ids_of


@pytest.fixture(scope="module", params=["of the real model", "with byte fallback", "written in Python"])
def some_tokenizer(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    return {"with byte fallback": BYTE_FALLBACK, "written in Python": IN_PYTHON}.get(request.param, tokenizer)


@pytest.fixture(scope="module", params=["of the real model", "with byte fallback"])
def fast_tokenizer(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    """A tokenizer that keeps invalid bytes, unlike ByT5, which is written in Python."""
    return {"with byte fallback": BYTE_FALLBACK}.get(request.param, tokenizer)


def texts_of(tokenizer: Any, ids: list[int]) -> list[str]:
    text_of = detokenizer(tokenizer)
    return [*(text_of.step(token_id) for token_id in ids), text_of.end()]


def test_the_fixtures_include_fast_and_python_tokenizers(tokenizer: Any) -> None:
    assert [tokenizer.is_fast, BYTE_FALLBACK.is_fast, IN_PYTHON.is_fast] == [True, True, False]


@pytest.mark.parametrize("text", TEXTS)
def test_deltas_join_to_the_text_and_contain_only_complete_characters(some_tokenizer: Any, text: str) -> None:
    ids = ids_of(some_tokenizer, text)
    texts = texts_of(some_tokenizer, ids)
    assert "".join(texts) == some_tokenizer.decode(ids, skip_special_tokens=True) == text
    assert not any("\ufffd" in text for text in texts)


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_that_is_cut_anywhere_contains_all_complete_characters(some_tokenizer: Any, text: str) -> None:
    text_of = detokenizer(some_tokenizer)
    ids = ids_of(some_tokenizer, text)
    so_far = ""
    for length, token_id in enumerate(ids, 1):
        so_far += text_of.step(token_id)
        known = some_tokenizer.decode(ids[:length], skip_special_tokens=True)
        assert text.startswith(so_far)
        # a tokenizer in Python may move a space when the next token follows
        assert so_far == known or known.endswith("\ufffd" if some_tokenizer.is_fast else ("\ufffd", " "))


@pytest.mark.parametrize("text", [*TEXTS, "鬱鬱鬱鬱鬱鬱"])
def test_a_text_can_be_continued_after_any_character(some_tokenizer: Any, text: str) -> None:
    ids = ids_of(some_tokenizer, text)
    cuts = 0
    for length in range(1, len(ids)):
        before = some_tokenizer.decode(ids[:length], skip_special_tokens=True)
        if text.startswith(before) and len(ids_of(some_tokenizer, before)) == length:  # else it ends within a character
            text_of = detokenizer(some_tokenizer, ids[:length])
            assert before + "".join(map(text_of.step, ids[length:])) + text_of.end() == text
            cuts += 1
    assert cuts


def test_special_tokens_have_no_text(some_tokenizer: Any) -> None:
    end = some_tokenizer.eos_token_id
    first, second = ids_of(some_tokenizer, "日本 abc"), ids_of(some_tokenizer, "no🍣")
    ids = [end, *first, end, *second, end, end]
    assert "".join(texts_of(some_tokenizer, ids)) == some_tokenizer.decode([*first, *second])


def test_special_tokens_without_a_role_have_no_text(fast_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(fast_tokenizer)
    tokenizer._tokenizer.add_special_tokens([AddedToken("<reserved>", special=True)])
    ids = [*ids_of(tokenizer, "日本"), tokenizer.convert_tokens_to_ids("<reserved>"), *ids_of(tokenizer, "no")]
    assert "".join(texts_of(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_complete_character_is_decoded_after_any_ids(data: st.DataObject, some_tokenizer: Any) -> None:
    ids = data.draw(st.lists(st.integers(0, len(some_tokenizer) - 1), max_size=12))
    assert "".join(texts_of(some_tokenizer, ids + ids_of(some_tokenizer, "a"))).endswith("a")


def test_text_after_an_incomplete_character_is_decoded() -> None:
    ids = [BYTE_FALLBACK.convert_tokens_to_ids(token) for token in ("a", "<0x0A>", "<0xF0>", "<0x9F>", "b")]
    assert "".join(texts_of(BYTE_FALLBACK, ids)) == "a\n\ufffdb"


def bytes_ids(tokenizer: Any, data: bytes) -> list[int]:
    """Return a token for each byte."""
    if tokenizer is BYTE_FALLBACK:
        return list(map(int, tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in data])))
    characters = {value[0]: character for character, value in byte_level_alphabet().items()}
    return list(map(int, tokenizer.convert_tokens_to_ids([characters[byte] for byte in data])))


BYTE_SEQUENCES = [
    b"\xe6\x97",
    b"\xef\xbf\xbd",
    b"\x80" * 41,
    b"a\xe6\x97b",
    b"\x80\xe6\x97\xa5\xe6",
    b"\xf0\x9f\x8d\xa3\xf0\x9f\x8d",
    "日\ufffd本\ufffd\ufffd".encode(),
]


@pytest.mark.parametrize("data", BYTE_SEQUENCES)
def test_invalid_bytes_become_replacement_characters(fast_tokenizer: Any, data: bytes) -> None:
    assert "".join(texts_of(fast_tokenizer, bytes_ids(fast_tokenizer, data))) == data.decode(errors="replace")


@settings(max_examples=200, deadline=None)
@given(
    data=st.lists(st.sampled_from([b"\xe6", b"\x97", b"\xa5", b"a", b" ", b"\xf0\x9f", b"\xef\xbf\xbd"])).map(b"".join)
)
def test_any_bytes_are_decoded_as_by_python(data: bytes) -> None:
    ids = bytes_ids(BYTE_FALLBACK, data)
    assert "".join(texts_of(BYTE_FALLBACK, ids)) == data.decode(errors="replace")


@pytest.mark.parametrize("end", ["5 \ufffd", "\ufffd", "日本 \ufffd\ufffd", "a\ufffd" * 20])
def test_text_before_the_answer_is_not_repeated_after_a_replacement_character(some_tokenizer: Any, end: str) -> None:
    text_of = detokenizer(some_tokenizer, ids_of(some_tokenizer, end))
    assert "".join(map(text_of.step, ids_of(some_tokenizer, "日b"))).lstrip() + text_of.end() == "日b"


@pytest.mark.parametrize(
    ("before", "answer", "text"),
    [
        (b"a\xe6\x97", b"b", "b"),
        (b"a\xe6\x97", b"\xa5b", "日b"),
        (b"a\xe6", b"\x97\xa5b", "日b"),
        (b"a\xe6", b"\x97b", "\ufffdb"),
        (b"a\xe6", b"\x97", "\ufffd"),
        (b"a\xe6", b"", ""),
        (b"\x80" * 40, b"b", "b"),
        (b"a\xef\xbf", b"\xbdb", "\ufffdb"),
    ],
)
def test_an_answer_may_complete_a_character_of_its_prompt(
    fast_tokenizer: Any, before: bytes, answer: bytes, text: str
) -> None:
    text_of = detokenizer(fast_tokenizer, bytes_ids(fast_tokenizer, before))
    assert "".join(map(text_of.step, bytes_ids(fast_tokenizer, answer))) + text_of.end() == text


def test_a_token_for_the_replacement_character_is_decoded_immediately() -> None:
    """The vocabulary of Llama 2 contains one."""
    tokenizer = copy.deepcopy(BYTE_FALLBACK)
    tokenizer.add_tokens([AddedToken("\ufffd", normalized=False)])
    text_of = detokenizer(tokenizer)
    assert [text_of.step(token_id) for token_id in ids_of(tokenizer, "\ufffd\ufffd")] == ["\ufffd", "\ufffd"]


class CountingTokenizer(ByT5Tokenizer):  # type: ignore[misc]
    """A tokenizer in Python that records the maximum number of ids in a ``decode`` call."""

    max_ids = 0

    def decode(self, token_ids: list[int], **options: Any) -> Any:
        self.max_ids = max(self.max_ids, len(token_ids))
        return super().decode(token_ids, **options)


@pytest.mark.parametrize("between", [[], [1] * 200, [0x80 + 3] * 200], ids=["nothing", "special", "lone bytes"])
def test_python_tokenizers_decode_only_a_short_window(between: list[int]) -> None:
    counting = CountingTokenizer()
    text = "日本の首都は東京です。👨‍👩‍👧‍👦" * 10
    ids = [*ids_of(counting, text), *between, *ids_of(counting, text)]
    assert "".join(texts_of(counting, ids)) == text + text
    assert 0 < counting.max_ids <= 16  # the last character and a new one have up to four bytes each


def pieces_of(tokenizer: Any, ids: list[int]) -> list[tuple[str, bool]]:
    """Return the texts of ``ids``, each with True if it is a mark, and without the pieces that are empty."""
    text_of = detokenizer(tokenizer)
    pieces: list[tuple[str, bool]] = []
    for token_id in ids:
        name = tokenizer.convert_ids_to_tokens(token_id)
        if name in ("<think>", "</think>"):
            pieces += [(text_of.mark(token_id, name), False), (name, True)]
        else:
            pieces.append((text_of.step(token_id), False))
    return [piece for piece in [*pieces, (text_of.end(), False)] if piece[0]]


words = st.integers(2, len(SPACE_MOVING.WORDS) + 1)
byte_tokens = st.sampled_from(SPACE_MOVING.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in "日🍣 a".encode()]))
marks = st.sampled_from(SPACE_MOVING.convert_tokens_to_ids(list(SPACE_MOVING.MARKS)))


@settings(max_examples=500, deadline=None)
@given(ids=st.lists(words | byte_tokens, max_size=60))
def test_streamed_text_of_a_tokenizer_that_moves_spaces_is_the_decoded_text(ids: list[int]) -> None:
    for tokenizer in (SPACE_MOVING, CLEANING):
        assert "".join(texts_of(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=500, deadline=None)
@given(ids=st.lists(words | byte_tokens | marks, max_size=60))
def test_marks_are_separate_from_the_text_of_a_tokenizer_that_moves_spaces(ids: list[int]) -> None:
    for tokenizer in (SPACE_MOVING, CLEANING):
        pieces = pieces_of(tokenizer, ids)
        assert "".join(text for text, _ in pieces) == tokenizer.decode(ids)
        assert all((text in tokenizer.MARKS) == is_mark for text, is_mark in pieces)


def test_only_spaces_at_the_end_are_pending() -> None:
    ids = SPACE_MOVING.convert_tokens_to_ids(["▁the", "▁a", "▁", "日", "▁a", "."])
    assert texts_of(SPACE_MOVING, ids) == ["the", " a", "", "日", "a", ".", ""]


def test_an_answer_that_is_cut_off_contains_pending_spaces_but_no_incomplete_character() -> None:
    ids = SPACE_MOVING.convert_tokens_to_ids(["b", "▁", "<0xE6>"])
    for length, text in ((2, "b "), (3, "b ")):
        text_of = detokenizer(SPACE_MOVING)
        assert "".join(map(text_of.step, ids[:length])) + text_of.end(cut_off=True) == text
