"""Reading of responses: golden sequences of each family's format, cut anywhere."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aiochatstream.engines.base import ToolCall
from aiochatstream.engines.transformers.marked_text import MarkedText
from aiochatstream.engines.transformers.response_reader import (
    ContentText,
    Part,
    ResponseReader,
    ResponseTemplate,
    Thought,
    load_response_template,
)
from aiochatstream.engines.transformers.response_templates import TEMPLATES

TOKENS: dict[str, tuple[str, ...]] = {
    "qwen3": ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    "qwen3_5": ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    "hermes": ("<|im_start|>", "<|im_end|>"),
    "gemma4": ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'),
    "functiongemma": (
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_function_call>",
        "<end_function_call>",
        "<start_function_response>",
        "<escape>",
    ),
    "harmony": ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"),
    "mistral": ("[INST]", "[/INST]", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "[THINK]", "[/THINK]"),
    "mistral_list": ("[INST]", "[/INST]", "[TOOL_CALLS]"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
    "llama3_thinking": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
    "deepseek": (
        "<｜Assistant｜>",
        "<think>",
        "</think>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    ),
    "thinking": (),
}
"""Control tokens of each family's vocabulary. Llama's distilled models write <think> as ordinary text."""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "exact": {"type": "boolean"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    }
    for name in ("weather", "f")
]

HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Tōkyō", "days": 3}}\n</tool_call>'
XML = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nTōkyō\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "</function>\n</tool_call>"
)
HARMONY_CALL = (
    "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    '{"city":"Tōkyō","days":3}<|call|>'
)
V3_CALL = (
    '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Tōkyō", "days": 3}\n```<｜tool▁call▁end｜>'
)
V31_CALL = '<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Tōkyō", "days": 3}<｜tool▁call▁end｜>'
GEMMA = '<|tool_call>call:weather{city:<|"|>Tōkyō<|"|>,days:3}<tool_call|>'
FUNCTION_GEMMA = "<start_function_call>call:weather{city:<escape>Tōkyō<escape>,days:3}<end_function_call>"
CHATML, LLAMA = "<|im_start|>assistant\n", "<|start_header_id|>assistant<|end_header_id|>\n\n"

WEATHER = ("weather", {"city": "Tōkyō", "days": 3})

Expected = list[Any]
"""Thoughts as ("thinking", text), content as text, calls as (name, arguments)."""


def thought(text: str) -> tuple[str, str]:
    return ("thinking", text)


GOLDEN: list[tuple[str, str, str, Expected]] = [
    # family, generation prompt, response, parts
    (
        "qwen3",
        CHATML,
        "<think>\nLet me think.\n\nYes.\n</think>\n\nHello.",
        [thought("Let me think.\n\nYes."), "Hello."],
    ),
    ("qwen3", CHATML + "<think>\n", "Hm.\n</think>\n\nHello.\n", [thought("Hm."), "Hello.\n"]),
    ("qwen3", CHATML + "<think>\n\n</think>\n\n", "Hello.", ["Hello."]),
    ("qwen3", CHATML, f"<think>\nHm.\n</think>\n\n{HERMES}", [thought("Hm."), WEATHER]),
    ("qwen3", CHATML, f"{HERMES}\n{HERMES}", [WEATHER, WEATHER]),
    ("qwen3", CHATML, f"Wait.\n{HERMES}\nNow:\n\n{HERMES}\nDone.", ["Wait.", WEATHER, "\nNow:", WEATHER, "\nDone."]),
    ("qwen3", CHATML + "<think>\n", f"{HERMES} no\n</think>\n\nHi", [thought(f"{HERMES} no"), "Hi"]),
    (
        "qwen3",
        CHATML,
        '<tool_call>\n{"name": "f", "arguments": {"city": "</tool_call>\n\t<think>"}}\n</tool_call>',
        [("f", {"city": "</tool_call>\n\t<think>"})],
    ),
    (
        "qwen3",
        CHATML,
        f'<tool_call>\n{{"name": "g"}}\n</tool_call>\n{HERMES}',
        ['<tool_call>\n{"name": "g"}\n</tool_call>', WEATHER],
    ),
    (
        "qwen3",
        CHATML,
        f'{HERMES}\n<tool_call>{{"name": "g"}}</tool_call>!',
        [WEATHER, '<tool_call>{"name": "g"}</tool_call>!'],
    ),
    (
        "qwen3",
        CHATML,
        '<tool_call>\n[{"name": "f"}, {"name": "f", "arguments": "{}"}]\n</tool_call>',
        [("f", {}), ("f", {})],
    ),
    ("qwen3", CHATML, '<tool_call>\n{"name": "f"}\n{"name": "f"}</tool_call>', [("f", {}), ("f", {})]),
    ("qwen3", CHATML, '<tool_call>{"name": "f"}', [("f", {})]),
    ("qwen3", CHATML, f'A <tool_call>{{"name": "f", "a\n\n{HERMES}', ['A <tool_call>{"name": "f", "a', WEATHER]),
    ("qwen3", CHATML, "<tool_call>\nweather(city)\n</tool_call> \n", ["<tool_call>\nweather(city)\n</tool_call> \n"]),
    (
        "qwen3",
        CHATML,
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        ['<tool_call>{"name": "f", "arguments": [1]}</tool_call>'],
    ),
    (
        "qwen3",
        CHATML,
        '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
        ['<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>'],
    ),
    (
        "qwen3",
        CHATML,
        r'<tool_call>{"name": "f", "arguments": {"x": "\ud800"}}</tool_call>',
        [r'<tool_call>{"name": "f", "arguments": {"x": "\ud800"}}</tool_call>'],
    ),
    ("qwen3", CHATML, " \n\n  No marks,  \n\n and spaces. \n ", [" \n\n  No marks,  \n\n and spaces. \n "]),
    ("qwen3", CHATML, "<think>a</think>b<think>c</think>d", [thought("a"), "b", thought("\n\nc"), "d"]),
    ("qwen3", CHATML, "</think> is a mark.", ["</think> is a mark."]),
    ("hermes", CHATML, f"Wait.\n\n{HERMES}", ["Wait.", WEATHER]),
    ("hermes", CHATML, "<think>a</think>", ["<think>a</think>"]),
    ("hermes", LLAMA, f"{HERMES}{HERMES}", [WEATHER, WEATHER]),
    ("qwen3_5", CHATML + "<think>\n", f"Hm.\n</think>\n\n{XML}\n{XML}", [thought("Hm."), WEATHER, WEATHER]),
    ("qwen3_5", CHATML, f"Wait. {XML} Done.", ["Wait.", WEATHER, " Done."]),
    (
        "qwen3_5",
        CHATML,
        "<tool_call>\n<function=f>\n<parameter=city>\n</function>\n</tool_call>\n\n</parameter>\n"
        '<parameter=tags>\n["a", "</tool_call>"]\n</parameter>\n<parameter=exact>true</parameter>'
        "</function></tool_call>",
        [("f", {"city": "</function>\n</tool_call>\n", "tags": ["a", "</tool_call>"], "exact": True})],
    ),
    ("qwen3_5", CHATML, "<tool_call>\n<function=f>\n</function>\n</tool_call>", [("f", {})]),
    (
        "qwen3_5",
        CHATML,
        f"<tool_call><function=g></function></tool_call>\n{XML}",
        ["<tool_call><function=g></function></tool_call>", WEATHER],
    ),
    ("qwen3_5", CHATML, "<tool_call><function=f>\nNo, wait.", ["<tool_call><function=f>\nNo, wait."]),
    ("qwen3_5", CHATML, "<tool_call><function=f><parameter=city>x", ["<tool_call><function=f><parameter=city>x"]),
    (
        "gemma4",
        "<|turn>model\n",
        f"<|channel>thought\nHm.\n<channel|>Wait.{GEMMA}{GEMMA}",
        [thought("Hm."), "Wait.", WEATHER, WEATHER],
    ),
    ("gemma4", "<|turn>model\n<|channel>thought\n<channel|>", "Hello.<turn|>", ["Hello."]),
    (
        "gemma4",
        "<tool_response|>",
        '<|tool_call>call:f{city:<|"|>"a", {b:1}<tool_call|>\n<|"|>,tags:[<|"|>x<|"|>],more:{exact:true,n:null}}'
        "<tool_call|>",
        [("f", {"city": '"a", {b:1}<tool_call|>\n', "tags": ["x"], "more": {"exact": True, "n": None}})],
    ),
    ("gemma4", "<|turn>model\n", "<|tool_call>call:g{}<tool_call|>", ["<|tool_call>call:g{}<tool_call|>"]),
    (
        "functiongemma",
        "<start_of_turn>model\n",
        f"{FUNCTION_GEMMA}{FUNCTION_GEMMA}<start_function_response>",
        [WEATHER, WEATHER],
    ),
    ("functiongemma", "<start_of_turn>model\n", "Which city?<end_of_turn>", ["Which city?"]),
    (
        "harmony",
        "<|start|>assistant",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello.<|return|>",
        [thought("Hm."), "Hello."],
    ),
    (
        "harmony",
        "<|start|>assistant<|channel|>analysis<|message|>",
        "Hm.<|end|><|start|>assistant<|channel|>analysis<|message|>More.<|end|>" + HARMONY_CALL,
        [thought("Hm.\n\nMore."), WEATHER],
    ),
    (
        "harmony",
        "<|start|>assistant",
        "<|channel|>commentary<|message|>I look.<|end|>"
        + HARMONY_CALL
        + HARMONY_CALL
        + "<|start|>assistant<|channel|>final <|constrain|>json<|message|>{}",
        ["I look.", WEATHER, WEATHER, "\n\n{}"],
    ),
    (
        "harmony",
        "<|start|>assistant",
        ' to=functions.weather<|channel|>commentary json<|message|>{"city":"Tōkyō","days":3}<|call|>',
        [WEATHER],
    ),
    (
        "harmony",
        "<|start|>assistant",
        "<|channel|>analysis to=python code<|message|>print(1)<|call|>",
        ["<|channel|>analysis to=python code<|message|>print(1)<|call|>"],
    ),
    (
        "harmony",
        "<|start|>assistant",
        '<|channel|>commentary to=functions.g <|constrain|>json<|message|>{"a":1}<|call|>',
        ['<|channel|>commentary to=functions.g <|constrain|>json<|message|>{"a":1}<|call|>'],
    ),
    ("harmony", "<|start|>assistant", "No channel.", ["No channel."]),
    (
        "mistral",
        "[INST]Hi[/INST]",
        '[THINK]Hm.[/THINK]Wait.[TOOL_CALLS]weather[ARGS]{"city": "Tōkyō", "days": 3}'
        '[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{"city": "[/INST]"}',
        [thought("Hm."), "Wait.", WEATHER, ("f", {"city": "[/INST]"})],
    ),
    ("mistral", "[INST]Hi[/INST]", "[TOOL_CALLS]f[ARGS]{} Done.", [("f", {}), "Done."]),
    ("mistral", "[INST]Hi[/INST]", "[TOOL_CALLS]f[ARGS][{}]", ["[TOOL_CALLS]f[ARGS][{}]"]),
    (
        "mistral_list",
        "[INST]Hi[/INST]",
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Tōkyō", "days": 3}}, {"name": "g", "arguments": {}}, '
        '{"name": "f", "arguments": {"tags": ["]"]}}] Done.',
        [WEATHER, ', {"name": "g", "arguments": {}}', ("f", {"tags": ["]"]}), " Done."],
    ),
    ("llama3", LLAMA, '{"name": "weather", "parameters": {"city": "Tōkyō", "days": "3"}}', [WEATHER]),
    (
        "llama3",
        LLAMA,
        '<|python_tag|>{"name": "f", "parameters": {}}; {"type": "function", "name": "f", "parameters": {}}',
        [("f", {}), ("f", {})],
    ),
    ("llama3", LLAMA, 'I call f.\n{"name": "f"}\nDone.', ["I call f.", ("f", {}), "\nDone."]),
    ("llama3", LLAMA, 'See {"name": "f"}', ['See {"name": "f"}']),
    ("llama3", LLAMA, '{"name": "Anna"}', ['{"name": "Anna"}']),
    ("llama3", LLAMA, "<|python_tag|>search.call(query='a')", ["<|python_tag|>search.call(query='a')"]),
    ("llama3_thinking", LLAMA, '<think>\nHm.\n</think>\n\n{"name": "f"}', [thought("Hm."), ("f", {})]),
    (
        "deepseek",
        "<｜Assistant｜><think>\n",
        f"Hm.\n</think>\n\nWait.<｜tool▁calls▁begin｜>{V3_CALL}\n{V3_CALL}<｜tool▁calls▁end｜>",
        [thought("Hm."), "Wait.", WEATHER, WEATHER],
    ),
    (
        "deepseek",
        "<｜Assistant｜></think>",
        f"<｜tool▁calls▁begin｜>{V31_CALL}{V31_CALL}<｜tool▁calls▁end｜>Done.",
        [WEATHER, WEATHER, "Done."],
    ),
    ("thinking", CHATML, "<think>\nHm.\n</think>\n\nHello.", [thought("Hm."), "Hello."]),
]


def load(family: str) -> ResponseTemplate:
    return load_response_template(TEMPLATES[family], TOKENS[family], TOKENS[family])


LOADED = {family: load(family) for family in TEMPLATES}


def tokens_of(family: str, text: str) -> list[tuple[str, bool]]:
    """Return the tokens of ``text``: control tokens, and characters."""
    pattern = "|".join(map(regex.escape, TOKENS[family])) or "(?!)"
    pieces: list[str] = regex.split(f"({pattern})", text)
    return [
        (token, index % 2 == 1) for index, piece in enumerate(pieces) for token in ([piece] if index % 2 else piece)
    ]


def joined(tokens: Iterable[tuple[str, bool]], cuts: Sequence[bool]) -> Iterator[tuple[str, bool]]:
    """Yield the tokens, with ordinary ones joined unless the cut before them is true."""
    text = ""
    for (token, control), cut in zip(tokens, cuts, strict=True):
        if text and (cut or control):
            yield text, False
            text = ""
        if control:
            yield token, True
        else:
            text += token
    if text:
        yield text, False


def read(reader: ResponseReader, tokens: Iterable[tuple[str, bool]], *, cut_off: bool = False) -> list[Part]:
    parts = [part for token, control in tokens for part in reader.feed(token, control=control)]
    return parts + reader.close(cut_off=cut_off)


def merged(parts: Sequence[Part]) -> list[Part]:
    result: list[Part] = []
    for part in parts:
        last = result[-1] if result else None
        if isinstance(part, ContentText) and isinstance(last, ContentText):
            result[-1] = ContentText(last.text + part.text)
        elif isinstance(part, Thought) and isinstance(last, Thought):
            result[-1] = Thought(last.text + part.text)
        else:
            result.append(part)
    return result


def simple(parts: Sequence[Part]) -> Expected:
    return [
        part.text
        if isinstance(part, ContentText)
        else thought(part.text)
        if isinstance(part, Thought)
        else (part.name, json.loads(part.arguments))
        for part in merged(parts)
    ]


@pytest.mark.parametrize(("family", "prompt", "response", "expected"), GOLDEN)
@pytest.mark.parametrize("cut", [False, True])
def test_responses_of_each_format_are_read(
    family: str, prompt: str, response: str, expected: Expected, cut: bool
) -> None:
    tokens = tokens_of(family, response)
    reader = ResponseReader(LOADED[family], f"Question{prompt}", TOOLS)
    assert simple(read(reader, joined(tokens, [cut] * len(tokens)))) == expected


@given(st.sampled_from(GOLDEN), st.data())
@settings(deadline=None)
def test_responses_are_read_with_cuts_anywhere(golden: tuple[str, str, str, Expected], data: st.DataObject) -> None:
    family, prompt, response, expected = golden
    tokens = tokens_of(family, response)
    cuts = data.draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    assert simple(read(ResponseReader(LOADED[family], prompt, TOOLS), joined(tokens, cuts))) == expected


@pytest.mark.parametrize(("family", "prompt", "response", "expected"), GOLDEN)
def test_real_tokens_are_read(family: str, prompt: str, response: str, expected: Expected) -> None:
    backend = Tokenizer(models.BPE({char: id_ for id_, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in TOKENS[family]])
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    reader = ResponseReader(LOADED[family], tokenizer.decode(tokenizer("Q" + prompt)["input_ids"]), TOOLS)
    parts: list[Part] = []
    text: list[int] = []
    for id_ in [*ids, None]:
        if text and (id_ is None or id_ in added or "\ufffd" not in tokenizer.decode(text)):
            parts += reader.feed(tokenizer.decode(text))
            text = []
        if id_ in added:
            parts += reader.feed(str(added[id_]), control=True)
        elif id_ is not None:
            text.append(id_)
    assert simple(parts + reader.close(cut_off=False)) == expected


FRAGMENTS = {
    family: [
        *TOKENS[family],
        *(piece for golden in GOLDEN if golden[0] == family for piece in regex.findall(r"\w+|\W", golden[2])),
        *(golden[2] for golden in GOLDEN if golden[0] == family),
        *("<", ">", "{", "}", '"', "\n", " ", "<th", "ink>", "<tool_", "call>", "\u3000", "[", "]"),
    ]
    for family in TEMPLATES
}


@st.composite
def responses(draw: st.DrawFn) -> tuple[str, list[tuple[str, bool]], list[bool], bool]:
    family = draw(st.sampled_from(sorted(TEMPLATES)))
    fragments = draw(st.lists(st.sampled_from(FRAGMENTS[family]), max_size=12))
    lookalike = draw(st.booleans())
    tokens = [
        token
        for fragment in fragments
        for token in ([(char, False) for char in fragment] if lookalike else tokens_of(family, fragment))
    ]
    cuts = draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    return family, tokens, cuts, draw(st.booleans())


def without_marks(family: str, text: str) -> str:
    """Return ``text`` without whitespace, hidden tokens, and the marks of thoughts and content."""
    for token in LOADED[family].hidden:
        text = text.replace(token, "")
    for field in (*LOADED[family].fields, LOADED[family].implicit):
        for mark in (field.open, field.close) if field is not None and field.kind != "call" else ():
            text = mark._pattern.sub("", text) if mark is not None else text
    return "".join(text.split(" ")).replace("\n", "").replace("\t", "")


@given(responses())
@settings(max_examples=400, deadline=None)
@example(("qwen3", [("<think>", True), (" ", False), ("</think>", True)], [False] * 3, True))
def test_no_character_is_lost(response: tuple[str, list[tuple[str, bool]], list[bool], bool]) -> None:
    family, tokens, cuts, cut_off = response
    parts = read(ResponseReader(LOADED[family], "", TOOLS), joined(tokens, cuts), cut_off=cut_off)
    text = "".join(token for token, _ in tokens)
    returned = "".join(part.text for part in parts)
    assert without_marks(family, returned) == without_marks(family, text)
    whole = read(ResponseReader(LOADED[family], "", TOOLS), joined(tokens, [False] * len(tokens)), cut_off=cut_off)
    assert merged(parts) == merged(whole)


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_ordinary_text_is_not_a_mark_if_the_mark_is_a_token(family: str) -> None:
    for _, _, response, _ in (golden for golden in GOLDEN if golden[0] == family and TOKENS[family]):
        if any(control for _, control in tokens_of(family, response)):
            reader = ResponseReader(LOADED[family], "", TOOLS)
            assert simple(read(reader, [(char, False) for char in response])) == [response]


def test_marks_that_are_not_tokens_are_found_in_text() -> None:
    template = load_response_template(TEMPLATES["qwen3"])
    response = f"<think>\nHm.\n</think>\n\n{HERMES}"
    for step in (1, 3, 1000):
        pieces = [(response[at : at + step], False) for at in range(0, len(response), step)]
        assert simple(read(ResponseReader(template, "", TOOLS), pieces)) == [thought("Hm."), WEATHER]


def test_a_lookalike_in_a_string_does_not_end_the_string() -> None:
    reader = ResponseReader(LOADED["gemma4"], "", TOOLS)
    tokens = tokens_of("gemma4", '<|tool_call>call:f{city:<|"|>')
    tokens += [('<|"|>}', False), *tokens_of("gemma4", '<|"|>}<tool_call|>')]
    assert simple(read(reader, tokens)) == [("f", {"city": '<|"|>}'})]


def test_without_tools_calls_are_text_immediately() -> None:
    reader = ResponseReader(LOADED["qwen3"], CHATML)
    for token, control in tokens_of("qwen3", HERMES.replace("\n", "")):
        if token.isspace():
            continue
        assert reader.feed(token, control=control)
        assert reader.region == "content"


def test_an_invalid_call_is_text_as_soon_as_it_cannot_become_valid() -> None:
    reader = ResponseReader(LOADED["qwen3"], CHATML, TOOLS)
    assert reader.feed("<tool_call>", control=True) == []
    assert reader.feed('\n{"name"') == []
    assert reader.feed(" is ") == [ContentText('<tool_call>\n{"name" is')]
    reader = ResponseReader(LOADED["qwen3_5"], CHATML, TOOLS)
    assert reader.feed("<tool_call>", control=True) == []
    assert reader.feed("<function=f>\n") == []
    assert reader.feed("Hm") == [ContentText("<tool_call><function=f>\nHm")]


def test_ordinary_text_is_returned_immediately() -> None:
    reader = ResponseReader(LOADED["qwen3"], CHATML, TOOLS)
    assert reader.feed("Hello") == [ContentText("Hello")]
    assert reader.feed(", world <") == [ContentText(", world")]
    assert reader.feed(" 3") == [ContentText(" < 3")]
    assert reader.feed(" \n") == []
    assert reader.feed("x") == [ContentText(" \nx")]


def test_an_open_call_that_is_cut_off_is_text() -> None:
    for family, response in (
        ("qwen3", '<tool_call>\n{"name": "f", "arguments": {'),
        ("qwen3_5", "<tool_call><function=f><parameter=city>x</parameter>"),
        ("harmony", '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a'),
    ):
        reader = ResponseReader(LOADED[family], "", TOOLS)
        assert simple(read(reader, tokens_of(family, response), cut_off=True)) == [response]


def test_a_call_has_its_text_with_marks() -> None:
    reader = ResponseReader(LOADED["qwen3"], CHATML, TOOLS)
    parts = read(reader, tokens_of("qwen3", f"Wait.\n{HERMES}\n\nDone."))
    assert [part.text for part in parts if isinstance(part, ToolCall)] == [HERMES]


@pytest.mark.parametrize(
    ("family", "prompt", "region"),
    [
        ("qwen3", CHATML, "content"),
        ("qwen3", CHATML + "<think>\n", "thinking"),
        ("qwen3", CHATML + "<think>\n\n</think>\n\n", "content"),
        ("qwen3", "Open <think>\n", "content"),
        ("qwen3", f"{CHATML}<think>\nHm.\n</think>\n\nHi<|im_end|>\n<|im_start|>user\n<think>\n{CHATML}", "content"),
        ("qwen3", f"{CHATML}Hello <tool_call>", "content"),
        ("harmony", "<|start|>assistant", "other"),
        ("harmony", "<|start|>assistant<|channel|>analysis<|message|>", "thinking"),
        ("harmony", "<|start|>assistant<|channel|>final<|message|>", "content"),
        ("gemma4", "<|turn>model\n<|channel>thought\n<channel|>", "content"),
        ("deepseek", "<｜Assistant｜><think>\n", "thinking"),
    ],
)
def test_the_prompt_determines_the_region(family: str, prompt: str, region: str) -> None:
    assert ResponseReader(LOADED[family], prompt, TOOLS).region == region


def test_a_continued_thought_or_answer_keeps_its_whitespace() -> None:
    reader = ResponseReader(LOADED["qwen3"], CHATML + "<think>\nI think ")
    assert reader.feed(" of\n") == [Thought(" of")]
    assert reader.feed("</think>", control=True) == []
    assert reader.feed("\n\nA") == [ContentText("A")]
    assert ResponseReader(LOADED["qwen3"], CHATML + "Hello").feed(" \n you") == [ContentText(" \n you")]


def test_regions_change_with_the_last_token_of_a_mark() -> None:
    reader = ResponseReader(LOADED["harmony"], "<|start|>assistant", TOOLS)
    regions = []
    for token, control in tokens_of(
        "harmony", "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>"
    ):
        reader.feed(token, control=control)
        regions.append(reader.region)
    assert regions[:9] == ["other"] * 9
    assert regions[9:-1] == ["thinking"] * 2 + ["other"] * (len(regions) - 12)
    assert regions[-1] == "content"


def test_the_region_of_a_call_ends_with_its_mark() -> None:
    reader = ResponseReader(LOADED["qwen3"], CHATML, TOOLS)
    regions = []
    for token, control in tokens_of("qwen3", HERMES):
        reader.feed(token, control=control)
        regions.append(reader.region)
    assert regions == ["call"] * (len(regions) - 1) + ["content"]


def test_a_mark_that_may_become_longer_already_changes_the_region() -> None:
    spec = {
        "start_anchor": "A:",
        "fields": {"reasoning": {"open": "<think>", "close_pattern": r"</think>\s*"}, "content": {}},
    }
    reader = ResponseReader(load_response_template(spec), "A:<think>")
    reader.feed("a</think>")
    assert reader.region == "content"
    assert reader.feed("\n\nb") == [ContentText("b")]


@pytest.mark.parametrize("name", ["thinking", "reasoning", "reasoning_content"])
def test_all_names_of_thoughts_are_known(name: str) -> None:
    spec = {"start_anchor": "A:", "fields": {name: {"open": "<t>", "close": "</t>"}, "content": {}}}
    reader = ResponseReader(load_response_template(spec))
    assert simple(read(reader, [("<t>a</t>b", False)])) == [thought("a"), "b"]


def test_unknown_fields_are_text() -> None:
    spec = {"start_anchor": "A:", "fields": {"citations": {"open": "<c>", "close": "</c>"}, "content": {}}}
    assert simple(read(ResponseReader(load_response_template(spec)), [("a <c>1</c>", False)])) == ["a <c>1</c>"]


def test_whitespace_is_text_in_fields_that_do_not_strip() -> None:
    args = {"content_args": {"strip": False}}
    spec = {"start_anchor": "A:", "fields": {"thinking": {"open": "<t>", "close": "</t>", **args}, "content": args}}
    reader = ResponseReader(load_response_template(spec))
    assert simple(read(reader, [("<t> a </t>\n b\n", False)])) == [thought(" a "), "\n b\n"]


def test_calls_of_other_forms_are_read() -> None:
    call = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
    field = {"open_pattern": r"<call (?P<name>\w+)>", "close": "</call>", "content": "kv-lines", "transform": call}
    spec = {"start_anchor": "A:", "fields": {"tool_calls": {**field, "repeats": True}, "content": {}}}
    template = load_response_template(spec)
    response = "<call weather>\ncity: Tōkyō\ndays: 3\n</call>"
    assert simple(read(ResponseReader(template, "", TOOLS), tokens_of("thinking", response))) == [WEATHER]
    assert simple(read(ResponseReader(template, "", TOOLS), [(response[:-1], False)])) == [response[:-1]]
    assert simple(read(ResponseReader(template, "", TOOLS), [("<call g></call>", False)])) == ["<call g></call>"]


@pytest.mark.parametrize(
    ("family", "open_thinking", "close_thinking"),
    [
        ("qwen3", "<think>", "\n</think>\n\n"),
        ("hermes", None, None),
        ("gemma4", "<|channel>thought\n", "<channel|>"),
        (
            "harmony",
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
        ("mistral", "[THINK]", "[/THINK]"),
    ],
)
def test_texts_that_open_and_close_thoughts(family: str, open_thinking: str | None, close_thinking: str | None) -> None:
    assert LOADED[family].open_thinking == open_thinking
    assert LOADED[family].close_thinking == close_thinking


def test_the_fixed_texts_of_a_template_open_and_close_its_thoughts() -> None:
    thinking = {"open": "<ponder>", "close": ["</other>", "</ponder>"]}
    spec = {"defaults": {}, "start_anchor": "A:", "fields": {"reasoning": thinking, "content": {}}}
    template = load_response_template(spec)
    assert (template.open_thinking, template.close_thinking) == ("<ponder>", "</other>")


def test_hidden_tokens_have_no_text() -> None:
    reader = ResponseReader(LOADED["qwen3"], CHATML)
    assert reader.feed("<|im_start|>", control=True) == []
    assert reader.feed("a") == [ContentText("a")]
    assert reader.feed("</tool_call>", control=True) == [ContentText("</tool_call>")]


N = 20_000


@pytest.mark.parametrize(
    ("family", "response"),
    [
        ("qwen3", " " * N),
        ("llama3", "\n" * N),
        ("qwen3", '<tool_call>{"name": "f", "arguments": {"city": "' + "x" * N),
        ("qwen3", '<tool_call>{"name": "f"}' + " " * N),
        ("qwen3", '<tool_call>{"name":' * (N // 19)),
        ("qwen3", "<tool_call>" + "[" * N),
        ("qwen3", "<think></think>" * (N // 15)),
        ("qwen3_5", "<tool_call><function=f><parameter=city>" + "x" * N),
        ("qwen3_5", "<tool_call><function=f><parameter=city>" + "</function></tool_call>" * (N // 23)),
        ("gemma4", '<|tool_call>call:f{city:<|"|>' + "x" * N),
        ("llama3", '\n{"name":' * (N // 9)),
    ],
)
def test_the_work_to_read_a_long_response_is_linear(
    family: str, response: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = load_response_template(TEMPLATES[family])
    counts: Counter[str] = Counter()
    search, find = MarkedText.search, MarkedText.find

    def counting_search(self: MarkedText, pattern: Any, start: int, *, partial: bool = False) -> Any:
        match = search(self, pattern, start, partial=partial)
        counts["characters"] += (len(self.text) if match is None else match.end()) - start
        return match

    def counting_find(self: MarkedText, literal: str, start: int) -> tuple[int | None, int]:
        counts["characters"] += len(self.text) - start
        return find(self, literal, start)

    monkeypatch.setattr(MarkedText, "search", counting_search)
    monkeypatch.setattr(MarkedText, "find", counting_find)

    def count(frame: Any, event: str, argument: Any) -> None:
        counts["calls"] += 1

    def work(text: str) -> Counter[str]:
        reader = ResponseReader(template, "", TOOLS)
        counts.clear()
        sys.setprofile(count)
        try:
            parts = [part for at in range(0, len(text), 4) for part in reader.feed(text[at : at + 4])]
            parts += reader.close(cut_off=True)
        finally:
            sys.setprofile(None)
        assert without_marks(family, "".join(part.text for part in parts)) == without_marks(family, text)
        return counts.copy()

    short = work(response[: len(response) // 10])
    assert all(number <= 20 * short[name] for name, number in work(response).items())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"fields": {"content": {}}}, "start_anchor"),
        ({"start_anchor": "A", "fields": {}}, "fields"),
        ({"start_anchor": "A", "fields": {"content": {"close_pattern": "("}}}, "'content'"),
        ({"start_anchor": "A", "fields": {"content": {"content_args": []}}}, "'content': content_args"),
        ({"start_anchor": "A", "fields": {"tool_calls": {"close": "x"}}}, "'tool_calls'"),
    ],
)
def test_invalid_templates_name_the_field(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_response_template(spec)
