"""Chat templates with restrictions on messages."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from aiochatstream import ChatPrompt, ChatStream
from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.errors import InvalidValue
from aiochatstream.prompts import ChatInput, render_messages
from aiochatstream.prompts.template_traits import traits_of
from aiochatstream.prompts.tools import supports_tools
from tests.engines.transformers.tiny_models import tiny
from tests.prompts.templates import DEEPSEEK, GPT_OSS, QWEN, with_template

USER: dict[str, Any] = {"role": "user", "content": "Hello"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "Hi"}
SYSTEM: dict[str, Any] = {"role": "system", "content": "Be brief."}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weather", "description": "Tells it."}}

PARTS_ONLY = """\
{% for message in messages %}<{{ message.role }}>{% for part in message.content %}\
{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"""

NO_SYSTEM = """\
{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"""

SILENT_SYSTEM = """\
{% for message in messages %}{% if message.role != 'system' %}<{{ message.role }}>{{ message.content }}{% endif %}\
{% endfor %}"""

IGNORED_TOOLS = "{# tools #}" + NO_SYSTEM

MISTRAL = """\
{% for message in messages %}\
{% for call in message.tool_calls or [] %}\
{% if call.id is not defined or call.id|length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric \
strings with length 9!') }}{% endif %}[{{ call.id }}]{% endfor %}\
{% if message.tool_calls is not defined %}{{ message.content }}{% endif %}\
{% if message.role == 'tool' %}\
{% if message.tool_call_id|length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with \
length 9!') }}{% endif %}({{ message.tool_call_id }}){% endif %}{% endfor %}{{ tools }}"""


def text_of(template: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    prompt = ChatPrompt()
    prompt.tokenizer = with_template(template)
    ((_, ids),) = ChatInput(messages, tools).encode(prompt)
    return str(prompt.tokenizer.decode(ids))


def test_content_is_converted_to_parts_for_templates_that_require_them() -> None:
    tokenizer = with_template(PARTS_ONLY)
    rendered = render_messages(tokenizer, [SYSTEM, USER, ANSWER, USER])
    assert rendered == "<system>Be brief.<user>Hello<assistant>Hi<user>Hello"
    prompt = ChatPrompt()
    prompt.tokenizer, prompt.message = tokenizer, "Hello"
    assert tokenizer.decode(prompt.encode()) == "<user>Hello"


@pytest.mark.parametrize("template", [NO_SYSTEM, SILENT_SYSTEM, IGNORED_TOOLS])
def test_system_text_and_tools_move_into_the_user_message_if_the_template_has_no_system_role(template: str) -> None:
    assert render_messages(with_template(template), [SYSTEM, USER]) == "<user>Be brief.\n\nHello"
    assert render_messages(with_template(template), [SYSTEM, SYSTEM, USER, ANSWER]).startswith(
        "<user>Be brief.\n\nBe brief.\n\nHello<assistant>"
    )
    assert render_messages(with_template(template), [USER]) == "<user>Hello"
    assert not supports_tools(with_template(template))
    for messages in ([USER], [SYSTEM, USER], [USER, ANSWER, USER]):
        text = text_of(template, messages, [TOOL])
        assert re.search(
            r"<user>(Be brief\.\n\n)?You may call functions.*weather.*</tool_call>\n\nHello", text, re.DOTALL
        )


def test_the_small_models_template_has_no_restrictions(tokenizer: PreTrainedTokenizerBase) -> None:
    traits = traits_of(tokenizer)
    assert (traits.text, traits.parts, traits.system, traits.tools) == (True, False, True, False)


@pytest.mark.parametrize(
    ("template", "field"),
    [
        (QWEN, "reasoning_content"),
        (GPT_OSS, "thinking"),
        (DEEPSEEK, None),  # a variable of the same name
        ("{{ messages[0].get('reasoning') or messages[0]['reasoning_content'] }}", "reasoning_content"),
        (PARTS_ONLY, None),
    ],
)
def test_the_field_of_thoughts_is_the_one_that_the_template_names(template: str, field: str | None) -> None:
    assert traits_of(with_template(template)).thought_field == field


async def test_an_error_of_a_broken_template_names_its_line() -> None:
    chat_stream = ChatStream(engine=TransformersEngine(tiny(), with_template("{{ messages }}\n{% if %}")))
    with pytest.raises(ValueError, match=r"^The model's chat template has a syntax error in line 2: Expected "):
        async with chat_stream:
            await chat_stream.wait_ready()


async def test_a_template_that_does_not_render_user_messages_is_refused_at_startup() -> None:
    for template in ("Hello", "{% for message in messages %}{{ message.role }}{% endfor %}"):
        chat_stream = ChatStream(engine=TransformersEngine(tiny(), with_template(template)))
        with pytest.raises(ValueError, match=r"^The model's chat template does not render the text of user messages"):
            async with chat_stream:
                await chat_stream.wait_ready()


@pytest.mark.parametrize("call_id", ["call_0123456789abcdef01234567", "1", "functions.f:0", "a1B2c3D4e"])
def test_call_ids_are_converted_to_the_form_that_the_template_requires(call_id: str) -> None:
    call = {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": call_id},
    ]
    text = render_messages(with_template(MISTRAL), messages)
    match = re.fullmatch(r"Hello\[([A-Za-z0-9]{9})\]5\(([A-Za-z0-9]{9})\)None", text)
    assert match is not None
    assert match[1] == match[2]
    assert render_messages(with_template(MISTRAL), messages) == text
    if len(call_id) == 9:
        assert match[1] == call_id


def test_arguments_of_calls_are_text_if_the_template_requires_it() -> None:
    template = """{% for message in messages %}{{ message.content }}{% for call in message.tool_calls or [] %}\
{{ '<' + call.function.arguments + '>' }}{% endfor %}{% endfor %}"""
    call = {"type": "function", "function": {"name": "f", "arguments": '{"city":"東京"}'}}
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [call, call]}, USER]
    assert render_messages(with_template(template), messages) == 'Hello<{"city": "東京"}><{"city": "東京"}>Hello'


def test_text_before_a_call_is_a_part_of_its_thought_if_the_template_accepts_only_one() -> None:
    template = """{% for message in messages %}{% if message.tool_calls and message.content and message.thinking %}\
{{ raise_exception('Content or thinking, not both.') }}{% endif %}\
{{ message.content }}{% if message.thinking %}({{ message.thinking }}){% endif %}{% endfor %}"""
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = {"role": "assistant", "content": "I look.", "reasoning_content": "Hm."}
    tokenizer = with_template(template)
    assert render_messages(tokenizer, [USER, answer, USER]) == "HelloI look.(Hm.)Hello"
    assert render_messages(tokenizer, [USER, {**answer, "tool_calls": [call]}]) == "Hello(Hm.\n\nI look.)"


@pytest.mark.parametrize("calls", [[], None])
def test_empty_tool_calls_are_omitted(calls: list[Any] | None) -> None:
    assert render_messages(with_template(MISTRAL), [{**ANSWER, "tool_calls": calls}]) == "HiNone"


@pytest.mark.parametrize(
    "arguments",
    ['{"city": "\\ud83d"}', '{"\\udc00": 1}', '{"a": [{"b": "x\\ude00\\ud83d"}]}', '{"a": 1e999}', '{"a": NaN}'],
)
@pytest.mark.parametrize("template", [MISTRAL, NO_SYSTEM])
def test_arguments_that_cannot_be_encoded_are_refused(arguments: str, template: str) -> None:
    json.loads(arguments)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}, USER]
    with pytest.raises(InvalidValue, match=r"^messages: the arguments of tool_calls must be JSON without unpaired"):
        text_of(template, messages, [TOOL])
