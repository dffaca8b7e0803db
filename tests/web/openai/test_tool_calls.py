"""Parsing of tool calls in generated text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiochatstream import ToolCall
from aiochatstream.web.openai.tool_calls import (
    CallPart,
    NamedCallParser,
    OutputParser,
    Part,
    RequiredCallsParser,
    ToolCallParser,
)

NAMES = {"f", "g"}
CALL, G = '{"name": "f", "arguments": {"x": 1}}', '{"name": "g"}'
F, G1 = CallPart(0, '{"x": 1}', "f"), CallPart(1, "{}", "g")


def read(parser: OutputParser, text: str, step: int) -> list[Part]:
    parts = [part for at in range(0, len(text), step) for part in parser.feed(text[at : at + step])]
    parts += parser.close()
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", [CallPart(0, '{"x": 1}', "f")]),
        (f"Let me see. <tool_call>{CALL}</tool_call>", ["Let me see. ", CallPart(0, '{"x": 1}', "f")]),
        (
            f'<tool_call>{CALL}</tool_call>\n<tool_call>{{"name": "g"}}</tool_call>',
            [CallPart(0, '{"x": 1}', "f"), CallPart(1, "{}", "g")],
        ),
        (f"<tool_call>[{CALL}, {CALL}]", [CallPart(0, '{"x": 1}', "f"), CallPart(1, '{"x": 1}', "f")]),
        (f"  {CALL}", [CallPart(0, '{"x": 1}', "f")]),
        ('{"name": "g", "parameters": {}}', [CallPart(0, "{}", "g")]),
        (f"[TOOL_CALLS][{CALL}]", [CallPart(0, '{"x": 1}', "f")]),
        ('{"name": "g", "arguments": "{}"}', [CallPart(0, "{}", "g")]),
        ("Just text, a <tool and more.", ["Just text, a <tool and more."]),
        ('{"name": "g", "arguments": null}', [CallPart(0, "{}", "g")]),
        ('{"name": "unknown"}', ['{"name": "unknown"}']),
        ('{"name": ["f"]}', ['{"name": ["f"]}']),
        ('{"name": "f", "arguments": [1]}', ['{"name": "f", "arguments": [1]}']),
        ('{"name": "f", "arguments": "Paris"}', ['{"name": "f", "arguments": "Paris"}']),
        ('{"name": "f", "arguments": {"x": 1e999}}', ['{"name": "f", "arguments": {"x": 1e999}}']),
        ('{"name": "f", "arguments": {"x": NaN}}', ['{"name": "f", "arguments": {"x": NaN}}']),
        (r'{"name": "f", "arguments": {"x": "\ud800"}}', [r'{"name": "f", "arguments": {"x": "\ud800"}}']),
        ("<tool_call>{broken</tool_call>", ["<tool_call>{broken</tool_call>"]),
        (f"<tool_call>{CALL}</tool_call> and so on", [F, " and so on"]),
        (
            f"Yes.\n<tool_call>{CALL}</tool_call>\nNow g:\n<tool_call>{G}</tool_call>!",
            ["Yes.\n", F, "\nNow g:\n", G1, "!"],
        ),
        (f"{CALL}\n{G}", [F, G1]),
        (f"{CALL}{G}", [F, G1]),
        (f"{CALL}; {G};", [F, G1]),
        (f"\n{CALL}\n\n{G}\nDone.", [F, G1, "\nDone."]),
        (f"I call f.\n{CALL}\n{G}", ["I call f.\n", F, G1]),
        (f"I call f.\n  [{CALL},\n  {G}]", ["I call f.\n", F, G1]),
        (f"[TOOL_CALLS] [{CALL}, {G}]", [F, G1]),
        (f"Yes. [TOOL_CALLS][{CALL}]", ["Yes. ", F]),
        ('{"name": "f", "arguments": {"x": "a\nb\tc"}}', [CallPart(0, '{"x": "a\\nb\\tc"}', "f")]),
        (json.dumps({"name": "f", "arguments": '{"x": "a\n"}'}), [CallPart(0, '{"x": "a\\n"}', "f")]),
        (
            f'<tool_call>{{"name": "h"}}</tool_call>\n<tool_call>{CALL}</tool_call>',
            ['<tool_call>{"name": "h"}</tool_call>\n', F],
        ),
        (
            f'<tool_call>{CALL}</tool_call>\n<tool_call>{{"name": "h"}}</tool_call>',
            [F, '\n<tool_call>{"name": "h"}</tool_call>'],
        ),
        (f'{{"name": "h"}}; {CALL}', ['{"name": "h"}; ', F]),
        (f"<tool_call>\n{CALL}\n{G}\n</tool_call>", [F, G1]),
        (f"See {CALL}", [f"See {CALL}"]),
        (f"{{broken\n{CALL}", ["{broken\n", F]),
        ('One.\n{ "name": 1 }\nTwo.', ['One.\n{ "name": 1 }\nTwo.']),
        ("[1] is a footnote", ["[1] is a footnote"]),
        ("5", ["5"]),
        ("", []),
    ],
)
def test_calls_are_parsed_from_pieces_of_any_length(text: str, expected: list[Any], step: int) -> None:
    assert read(ToolCallParser(NAMES), text, step) == expected


@pytest.mark.parametrize(
    "text", ["{" * 50_000, "[" * 50_000, "\n{" * 50_000, "\n" * 50_000 + "{", f"{CALL}" + " " * 50_000 + "{" * 50_000]
)
def test_text_without_calls_is_parsed_in_bounded_steps(text: str) -> None:
    attempts: list[int] = []

    class Decoder(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> Any:
            attempts.append(idx)
            return super().raw_decode(s, idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aiochatstream.web.openai.tool_calls.DECODER", Decoder(strict=False))
        parts = read(ToolCallParser(NAMES), text, len(text))
    assert "".join(part for part in parts if isinstance(part, str)) in (text, text.removeprefix(CALL))
    assert len(attempts) <= 102


def test_without_parallel_calls_all_text_is_returned() -> None:
    text = f"<tool_call>{CALL}</tool_call> and <tool_call>{G}</tool_call>."
    assert read(ToolCallParser(NAMES, parallel=False), text, 5) == [F, " and ."]


def test_only_lines_that_may_be_calls_are_held_back() -> None:
    parser = ToolCallParser(NAMES)
    assert parser.feed("a\n") == ["a\n"]
    assert parser.feed("{ x }\n") == ["{ x }\n"]
    assert parser.feed('  {"na') == []
    assert parser.feed("il\n") == ['  {"nail\n']
    assert parser.feed('{"name') == []
    assert parser.feed('": 1} ') == []
    assert parser.close() == ['{"name": 1} ']


def test_too_deeply_nested_json_is_text() -> None:
    text = "[" * 100_000
    assert read(ToolCallParser(NAMES), text, len(text)) == [text]


def test_text_is_returned_immediately() -> None:
    parser = ToolCallParser(NAMES)
    assert parser.feed("Hello ") == ["Hello "]
    assert parser.feed("a <tool") == ["a "]
    assert parser.feed("s>") == ["<tools>"]


def test_constrained_calls_are_parsed() -> None:
    parts = read(NamedCallParser("f"), '{"x":1}', 2)
    assert [part.name for part in parts if isinstance(part, CallPart)] == ["f", None, None, None]
    assert json.loads("".join(part.arguments for part in parts if isinstance(part, CallPart))) == {"x": 1}
    assert read(RequiredCallsParser(NAMES), f"[{CALL}]", 4) == [CallPart(0, '{"x": 1}', "f")]
    assert read(RequiredCallsParser(NAMES), f"[{CALL}", 4) == [f"[{CALL}"]  # cut off


READ_F, READ_H = ToolCall("f", '{"x":1}', "<f>"), ToolCall("h", "{}", "<h>")
"""A call of a known and of an unknown function, as the engine reads them."""


def test_calls_that_the_engine_has_read_are_not_parsed_again() -> None:
    parser = ToolCallParser(NAMES, text_may_be_call=False)
    assert parser.feed(CALL) == [CALL]
    assert parser.add_call(READ_F) == [CallPart(0, '{"x":1}', "f")]
    assert parser.add_call(READ_H) == ["<h>"]
    assert parser.feed("\n") == ["\n"]
    assert parser.add_call(READ_F) == [CallPart(1, '{"x":1}', "f")]
    assert parser.close() == []


def test_without_parallel_calls_only_the_first_call_that_the_engine_has_read_is_returned() -> None:
    parser = ToolCallParser(NAMES, parallel=False, text_may_be_call=False)
    assert [parser.add_call(call) for call in (READ_H, READ_F, READ_F)] == [["<h>"], [CallPart(0, '{"x":1}', "f")], []]


def test_text_is_not_parsed_after_a_call_that_the_engine_has_read() -> None:
    parser = ToolCallParser(NAMES)
    assert parser.feed(f"{CALL}\n") == []  # may be a call
    assert parser.add_call(READ_F) == [f"{CALL}\n", CallPart(0, '{"x":1}', "f")]
    assert parser.feed(CALL) == [CALL]
    assert parser.close() == []


@pytest.mark.parametrize("parser", [NamedCallParser("f"), RequiredCallsParser(NAMES)])
def test_forced_calls_are_parsed_from_the_text_only(parser: OutputParser) -> None:
    call = ToolCall("g", "{}", f"[{CALL}]")
    assert [*parser.add_call(call), *parser.close()] in ([CallPart(0, f"[{CALL}]", "f")], [F])
