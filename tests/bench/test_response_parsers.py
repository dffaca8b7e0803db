"""However the bytes are cut, the pieces are the same; and what is no whole answer is never taken for one."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from aiochatstream.bench.response_parsers import (
    AnswerReader,
    BadAnswer,
    CumulativeReader,
    OpenAIReader,
    Refused,
    SseReader,
    TextReader,
    WrongProtocol,
)
from tests.bench.scripted_server import delta, done, event

TEXTS = ["東京", "は", " a\n", "b", "é!"]


def chunk(text: str | None = None, **extra: object) -> str:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return f"data: {json.dumps({'choices': choices, **extra}, ensure_ascii=False)}\n\n"


STOPPED = 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
USAGE = {"completion_tokens": 9, "prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}

BODIES: dict[type[AnswerReader], str] = {
    SseReader: ": awake\n\n" + event("queued", position=1) + event("start") + "".join(map(delta, TEXTS)) + done(9, 0.5),
    OpenAIReader: chunk("") + "".join(map(chunk, TEXTS)) + STOPPED + chunk(usage=USAGE) + "data: [DONE]\n\n",
    CumulativeReader: "".join("".join(TEXTS[: count + 1]) + "<::EOS::>" for count in range(len(TEXTS))),
}
"""Each body has the five texts."""


def read(reader: AnswerReader, pieces: list[bytes]) -> list[str]:
    texts = [text for piece in pieces for text in reader.feed(piece, chunk_ends=False)]
    reader.finish()
    return texts


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 61, 100_000])
def test_pieces_do_not_depend_on_how_the_bytes_are_cut(kind: type[AnswerReader], size: int) -> None:
    body = BODIES[kind].encode()
    assert read(kind(), [body[at : at + size] for at in range(0, len(body), size)]) == TEXTS


@pytest.mark.parametrize("kind", [SseReader, OpenAIReader])
def test_lines_may_end_as_they_do_on_windows(kind: type[AnswerReader]) -> None:
    assert read(kind(), [BODIES[kind].replace("\n\n", "\r\n\r\n").encode()]) == TEXTS


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_that_ends_too_early_is_no_answer(kind: type[AnswerReader]) -> None:
    body = BODIES[kind].encode()
    whole_from = body.index(b'"stop"') if kind is OpenAIReader else len(body)
    cut = [body[:at] for at in range(whole_from) if not body[:at].endswith(b"<::EOS::>")]
    for piece in cut:
        with pytest.raises(BadAnswer):
            read(kind(), [piece])


def test_the_server_tells_tokens_and_queue_time() -> None:
    ours, openai = SseReader(), OpenAIReader()
    read(ours, [BODIES[SseReader].encode()])
    read(openai, [BODIES[OpenAIReader].encode()])
    told = ours.told
    assert (told.completion_tokens, told.prompt_tokens, told.cached_tokens, told.queue_s) == (9, 10, 4, 0.5)
    told = openai.told
    assert (told.completion_tokens, told.prompt_tokens, told.cached_tokens, told.queue_s) == (9, 3, 1, None)


def test_plain_text_counts_http_chunks_and_keeps_split_characters_whole() -> None:
    reader, body = TextReader(), "東京".encode()
    assert reader.feed(body[:2], chunk_ends=False) == []
    assert reader.feed(body[2:4], chunk_ends=True) == ["東"]
    assert reader.feed(body[4:], chunk_ends=True) == ["京"]
    reader.finish()
    reader.feed(body[:1], chunk_ends=True)
    with pytest.raises(BadAnswer, match="UTF-8"):
        reader.finish()


@pytest.mark.parametrize(
    ("reader", "body", "error"),
    [
        (SseReader(), event("error", error={"error": "internal_server_error"}), BadAnswer),
        (SseReader(), event("error", error={"error": "too_many_requests"}), Refused),
        (SseReader(), chunk("hi"), WrongProtocol),
        (SseReader(), "event: delta\ndata: {\n\n", BadAnswer),
        (OpenAIReader(), 'data: {"error": {"message": "no"}}\n\n', BadAnswer),
        (OpenAIReader(), delta("hi"), WrongProtocol),
        (OpenAIReader(), "data: []\n\n", BadAnswer),
        (CumulativeReader(), '{"error": "too_many_requests"}', Refused),
        (CumulativeReader(), "hello", WrongProtocol),
        (CumulativeReader(), "hello<::EOS::>hello the", BadAnswer),
    ],
)
def test_errors_in_the_body_are_told_apart(reader: AnswerReader, body: str, error: type[BadAnswer]) -> None:
    with pytest.raises(BadAnswer) as raised:
        read(reader, [body.encode()])
    assert type(raised.value) is error


def test_plain_text_with_chatstreams_end_token_is_the_wrong_protocol() -> None:
    with pytest.raises(WrongProtocol, match="--protocol chatstream"):
        TextReader().feed(b"hi<::EOS::>", chunk_ends=True)


@pytest.mark.parametrize("odd", ["null", "5", '"x"', "[]", "{}", "[5]", "true", '{"delta": 5}'])
def test_values_of_unexpected_types_are_never_more_than_a_bad_answer(odd: str) -> None:
    ours = f'event: delta\ndata: {{"text": {odd}}}\n\nevent: done\ndata: {{"usage": {odd}, "timing": {odd}}}\n\n'
    counts = f'event: done\ndata: {{"usage": {{"completion_tokens": {odd}}}, "timing": {{"queue_s": {odd}}}}}\n\n'
    openai = f'data: {{"choices": {odd}, "usage": {odd}}}\n\ndata: {{"choices": [{{"delta": {odd}}}]}}\n\n'
    for reader, body in ((SseReader(), ours), (SseReader(), counts), (OpenAIReader(), openai)):
        with suppress(BadAnswer):
            assert all(isinstance(text, str) for text in reader.feed(body.encode(), chunk_ends=False))
        assert isinstance(reader.told.completion_tokens, int | None)
    with pytest.raises(BadAnswer):
        SseReader().feed(f'event: error\ndata: {{"error": {odd}}}\n\n'.encode(), chunk_ends=False)
