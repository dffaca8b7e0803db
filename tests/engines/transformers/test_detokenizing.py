"""From token ids to text, token by token."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from aiochatstream.engines.token_bytes import byte_level_alphabet
from aiochatstream.engines.transformers.detokenizing import detokenizer

TEXTS = [
    "Hello, how are you?",
    "日本の首都は東京です。鬱蒼たる森。",
    "The family 👨‍👩‍👧‍👦, the flag 🏳️‍🌈 and 🇯🇵🍣",
    "नमस्ते दुनिया, क्षत्रिय ज्ञान",
    "  two\n\n\tlines: naïve café 東京タワー🗼 is 333 m; हिन्दी 👩🏽‍🚀 ok  ",
    "\ufeff\u00a0\u200b é e\u0301 𝔘𝔫𝔦 Ω",
]


def byte_fallback_tokenizer() -> Any:
    """As Llama 2, Mistral and Gemma write text: a byte a token, line ends too, where the vocabulary has no token."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnop日本東"]
    vocab = {token: at for at, token in enumerate(tokens)}
    backend = SerialisedTokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))  # noqa: S106
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")  # noqa: S106


BYTE_FALLBACK = byte_fallback_tokenizer()
IN_PYTHON = ByT5Tokenizer()


@pytest.fixture(scope="module", params=["of the real model", "with byte fallback", "written in Python"])
def some_tokenizer(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    return {"with byte fallback": BYTE_FALLBACK, "written in Python": IN_PYTHON}.get(request.param, tokenizer)


@pytest.fixture(scope="module", params=["of the real model", "with byte fallback"])
def fast_tokenizer(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    """ByT5, which is written in Python, itself drops bytes that are no character."""
    return {"with byte fallback": BYTE_FALLBACK}.get(request.param, tokenizer)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def pieces_of(tokenizer: Any, ids: list[int]) -> list[str]:
    text_of = detokenizer(tokenizer)
    return [*(text_of.step(token_id) for token_id in ids), text_of.end()]


def test_the_two_ways_of_decoding_are_both_tried(tokenizer: Any) -> None:
    assert [tokenizer.is_fast, BYTE_FALLBACK.is_fast, IN_PYTHON.is_fast] == [True, True, False]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_together_are_the_text_and_none_holds_half_a_character(some_tokenizer: Any, text: str) -> None:
    ids = ids_of(some_tokenizer, text)
    pieces = pieces_of(some_tokenizer, ids)
    assert "".join(pieces) == some_tokenizer.decode(ids, skip_special_tokens=True) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_wherever_an_answer_is_cut_all_whole_characters_show_and_no_half_one(some_tokenizer: Any, text: str) -> None:
    text_of = detokenizer(some_tokenizer)
    ids = ids_of(some_tokenizer, text)
    so_far = ""
    for length, token_id in enumerate(ids, 1):
        so_far += text_of.step(token_id)
        known = some_tokenizer.decode(ids[:length], skip_special_tokens=True)
        assert text.startswith(so_far)
        assert so_far == known or known.endswith("\ufffd")


@pytest.mark.parametrize("text", [*TEXTS, "鬱鬱鬱鬱鬱鬱"])
def test_a_text_goes_on_from_any_character_as_if_it_had_never_been_cut(some_tokenizer: Any, text: str) -> None:
    ids = ids_of(some_tokenizer, text)
    cuts = 0
    for length in range(1, len(ids)):
        before = some_tokenizer.decode(ids[:length], skip_special_tokens=True)
        if text.startswith(before) and len(ids_of(some_tokenizer, before)) == length:  # else it is half a character
            text_of = detokenizer(some_tokenizer, ids[:length])
            assert before + "".join(map(text_of.step, ids[length:])) + text_of.end() == text
            cuts += 1
    assert cuts


def test_special_tokens_are_left_out(some_tokenizer: Any) -> None:
    end = some_tokenizer.eos_token_id
    first, second = ids_of(some_tokenizer, "日本 abc"), ids_of(some_tokenizer, "no🍣")
    ids = [end, *first, end, *second, end, end]
    assert "".join(pieces_of(some_tokenizer, ids)) == some_tokenizer.decode([*first, *second])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_ids_a_model_writes_nothing_breaks_and_the_next_whole_character_shows(
    data: st.DataObject, some_tokenizer: Any
) -> None:
    ids = data.draw(st.lists(st.integers(0, len(some_tokenizer) - 1), max_size=12))
    assert "".join(pieces_of(some_tokenizer, ids + ids_of(some_tokenizer, "a"))).endswith("a")


def test_half_a_character_after_a_byte_that_was_shown_does_not_end_the_answer() -> None:
    ids = [BYTE_FALLBACK.convert_tokens_to_ids(token) for token in ("a", "<0x0A>", "<0xF0>", "<0x9F>", "b")]
    assert "".join(pieces_of(BYTE_FALLBACK, ids)) == "a\n\ufffdb"


def bytes_ids(tokenizer: Any, data: bytes) -> list[int]:
    """A token for each byte."""
    if tokenizer is BYTE_FALLBACK:
        return list(map(int, tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in data])))
    of_byte = {value[0]: character for character, value in byte_level_alphabet().items()}
    return list(map(int, tokenizer.convert_tokens_to_ids([of_byte[byte] for byte in data])))


RUNS = [
    b"\xe6\x97",
    b"\xef\xbf\xbd",
    b"\x80" * 41,
    b"a\xe6\x97b",
    b"\x80\xe6\x97\xa5\xe6",
    b"\xf0\x9f\x8d\xa3\xf0\x9f\x8d",
    "日\ufffd本\ufffd\ufffd".encode(),
]


@pytest.mark.parametrize("data", RUNS)
def test_no_byte_of_an_answer_is_lost_and_whole_characters_stay_whole(fast_tokenizer: Any, data: bytes) -> None:
    assert "".join(pieces_of(fast_tokenizer, bytes_ids(fast_tokenizer, data))) == data.decode(errors="replace")


@settings(max_examples=200, deadline=None)
@given(
    data=st.lists(st.sampled_from([b"\xe6", b"\x97", b"\xa5", b"a", b" ", b"\xf0\x9f", b"\xef\xbf\xbd"])).map(b"".join)
)
def test_the_text_of_any_bytes_is_what_they_decode_to(data: bytes) -> None:
    ids = bytes_ids(BYTE_FALLBACK, data)
    assert "".join(pieces_of(BYTE_FALLBACK, ids)) == data.decode(errors="replace")


@pytest.mark.parametrize("end", ["5 \ufffd", "\ufffd", "日本 \ufffd\ufffd", "a\ufffd" * 20])
def test_after_a_text_that_ends_in_a_replacement_character_only_new_text_is_told(some_tokenizer: Any, end: str) -> None:
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
def test_after_half_a_character_an_answer_completes_or_leaves_it(
    fast_tokenizer: Any, before: bytes, answer: bytes, text: str
) -> None:
    text_of = detokenizer(fast_tokenizer, bytes_ids(fast_tokenizer, before))
    assert "".join(map(text_of.step, bytes_ids(fast_tokenizer, answer))) + text_of.end() == text


def test_a_piece_that_is_a_replacement_character_is_told_at_once() -> None:
    """Llama 2 has one in its vocabulary."""
    tokenizer = copy.deepcopy(BYTE_FALLBACK)
    tokenizer.add_tokens([AddedToken("\ufffd", normalized=False)])
    text_of = detokenizer(tokenizer)
    assert [text_of.step(token_id) for token_id in ids_of(tokenizer, "\ufffd\ufffd")] == ["\ufffd", "\ufffd"]


class CountingTokenizer(ByT5Tokenizer):
    """Written in Python; counts the ids that it is asked to decode."""

    most_ids = 0

    def decode(self, token_ids: list[int], **options: Any) -> Any:
        self.most_ids = max(self.most_ids, len(token_ids))
        return super().decode(token_ids, **options)


@pytest.mark.parametrize("between", [[], [1] * 200, [0x80 + 3] * 200], ids=["nothing", "special", "lone bytes"])
def test_a_tokenizer_in_python_never_decodes_more_than_a_short_window(between: list[int]) -> None:
    counting = CountingTokenizer()
    text = "日本の首都は東京です。👨‍👩‍👧‍👦" * 10
    ids = [*ids_of(counting, text), *between, *ids_of(counting, text)]
    assert "".join(pieces_of(counting, ids)) == text + text
    assert 0 < counting.most_ids <= 16  # characters of up to four bytes: the last one and a new one
