"""Parsers of answers: texts do not depend on the division of the bytes, and incomplete answers are errors."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from aiochatstream.bench.response_parsers import (
    ChatEventParser,
    CumulativeTextParser,
    InvalidAnswer,
    OpenAIParser,
    ProtocolMismatch,
    RequestRefused,
    ResponseParser,
    ServerStats,
    TextParser,
)
from tests.bench.events import delta, done, event

TEXTS = ["東京", "は", " a\n", "b", "é!"]


def chunk(text: str | None = None, **extra: object) -> str:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return f"data: {json.dumps({'choices': choices, **extra}, ensure_ascii=False)}\n\n"


STOPPED = 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
USAGE = {"completion_tokens": 9, "prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}

BODIES: dict[type[ResponseParser], str] = {
    ChatEventParser: ": awake\n\n"
    + event("queued", position=1)
    + event("start")
    + "".join(map(delta, TEXTS))
    + done(9, 0.5),
    OpenAIParser: chunk("") + "".join(map(chunk, TEXTS)) + STOPPED + chunk(usage=USAGE) + "data: [DONE]\n\n",
    CumulativeTextParser: "".join("".join(TEXTS[: count + 1]) + "<::EOS::>" for count in range(len(TEXTS))),
}
"""Bodies of the five texts."""


def parse(parser: ResponseParser, chunks: list[bytes]) -> list[str]:
    texts = [text for chunk in chunks for text in parser.feed(chunk, chunk_end=False)]
    parser.finish()
    return texts


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 61, 100_000])
def test_texts_do_not_depend_on_the_division_of_the_bytes(kind: type[ResponseParser], size: int) -> None:
    body = BODIES[kind].encode()
    assert parse(kind(), [body[at : at + size] for at in range(0, len(body), size)]) == TEXTS


@pytest.mark.parametrize("kind", [ChatEventParser, OpenAIParser])
def test_lines_may_end_with_crlf(kind: type[ResponseParser]) -> None:
    assert parse(kind(), [BODIES[kind].replace("\n\n", "\r\n\r\n").encode()]) == TEXTS


@pytest.mark.parametrize("kind", BODIES)
def test_a_truncated_body_is_an_error(kind: type[ResponseParser]) -> None:
    body = BODIES[kind].encode()
    complete = body.index(b'"stop"') if kind is OpenAIParser else len(body)
    for truncated in [body[:end] for end in range(complete) if not body[:end].endswith(b"<::EOS::>")]:
        with pytest.raises(InvalidAnswer):
            parse(kind(), [truncated])


def test_token_counts_and_queue_time_of_the_server_are_recorded() -> None:
    ours, openai = ChatEventParser(), OpenAIParser()
    parse(ours, [BODIES[ChatEventParser].encode()])
    parse(openai, [BODIES[OpenAIParser].encode()])
    assert ours.stats == ServerStats(completion_tokens=9, prompt_tokens=10, cached_tokens=4, queue_s=0.5)
    assert openai.stats == ServerStats(completion_tokens=9, prompt_tokens=3, cached_tokens=1, queue_s=None)


def test_plain_text_counts_http_chunks_and_joins_divided_characters() -> None:
    parser, body = TextParser(), "東京".encode()
    assert parser.feed(body[:2], chunk_end=False) == []
    assert parser.feed(body[2:4], chunk_end=True) == ["東"]
    assert parser.feed(body[4:], chunk_end=True) == ["京"]
    parser.finish()
    parser.feed(body[:1], chunk_end=True)
    with pytest.raises(InvalidAnswer, match="UTF-8"):
        parser.finish()


@pytest.mark.parametrize(
    ("parser", "body", "error"),
    [
        (ChatEventParser(), event("error", error={"error": "internal_server_error"}), InvalidAnswer),
        (ChatEventParser(), event("error", error={"error": "too_many_requests"}), RequestRefused),
        (ChatEventParser(), chunk("hi"), ProtocolMismatch),
        (ChatEventParser(), "event: delta\ndata: {\n\n", InvalidAnswer),
        (OpenAIParser(), 'data: {"error": {"message": "no"}}\n\n', InvalidAnswer),
        (OpenAIParser(), delta("hi"), ProtocolMismatch),
        (OpenAIParser(), "data: []\n\n", InvalidAnswer),
        (CumulativeTextParser(), '{"error": "too_many_requests"}', RequestRefused),
        (CumulativeTextParser(), "hello", ProtocolMismatch),
        (CumulativeTextParser(), "hello<::EOS::>hello the", InvalidAnswer),
    ],
)
def test_errors_in_the_body_are_distinguished(parser: ResponseParser, body: str, error: type[InvalidAnswer]) -> None:
    with pytest.raises(InvalidAnswer) as raised:
        parse(parser, [body.encode()])
    assert type(raised.value) is error


def test_plain_text_with_the_end_token_of_chatstream_is_a_protocol_mismatch() -> None:
    with pytest.raises(ProtocolMismatch, match="--protocol chatstream"):
        TextParser().feed(b"hi<::EOS::>", chunk_end=True)


@pytest.mark.parametrize("odd", ["null", "5", '"x"', "[]", "{}", "[5]", "true", '{"delta": 5}'])
def test_values_of_unexpected_types_are_ignored_or_invalid(odd: str) -> None:
    ours = f'event: delta\ndata: {{"text": {odd}}}\n\nevent: done\ndata: {{"usage": {odd}, "timing": {odd}}}\n\n'
    counts = f'event: done\ndata: {{"usage": {{"completion_tokens": {odd}}}, "timing": {{"queue_s": {odd}}}}}\n\n'
    openai = f'data: {{"choices": {odd}, "usage": {odd}}}\n\ndata: {{"choices": [{{"delta": {odd}}}]}}\n\n'
    for parser, body in ((ChatEventParser(), ours), (ChatEventParser(), counts), (OpenAIParser(), openai)):
        with suppress(InvalidAnswer):
            assert all(isinstance(text, str) for text in parser.feed(body.encode(), chunk_end=False))
        assert isinstance(parser.stats.completion_tokens, int | None)
    with pytest.raises(InvalidAnswer):
        ChatEventParser().feed(f'event: error\ndata: {{"error": {odd}}}\n\n'.encode(), chunk_end=False)


def test_thoughts_are_texts() -> None:
    thought = event("thinking", text="Hm. ")
    assert parse(ChatEventParser(), [f"{event('start')}{thought}{delta('Yes.')}{done(2, 0)}".encode()]) == [
        "Hm. ",
        "Yes.",
    ]
    choices = [{"index": 0, "delta": {"reasoning_content": "Hm. ", "reasoning": "Hm. "}, "finish_reason": None}]
    chunks = f"data: {json.dumps({'choices': choices})}\n\n{chunk('Yes.')}{STOPPED}"
    assert parse(OpenAIParser(), [chunks.encode()]) == ["Hm. ", "Yes."]
