"""Chat templates that do not take messages as they come."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from aiochatstream import ChatPrompt, ChatStream
from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.errors import InvalidValue
from aiochatstream.prompts import GivenMessages, render_messages
from aiochatstream.prompts.template_traits import traits_of
from aiochatstream.prompts.tools import knows_tools
from tests.engines.tokenizers import BYTE_FALLBACK
from tests.engines.transformers.tiny_models import tiny

USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it."}}

PARTS_ONLY = """\
{% for message in messages %}<{{ message.role }}>{% for part in message.content %}\
{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"""

NO_SYSTEM = """\
{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"""

SILENT_SYSTEM = """\
{% for message in messages %}{% if message.role != 'system' %}<{{ message.role }}>{{ message.content }}{% endif %}\
{% endfor %}"""

TOOLS_NOT_TOLD = "{# tools #}" + NO_SYSTEM

MISTRAL = """\
{% for message in messages %}\
{% for call in message.tool_calls or [] %}\
{% if call.id is not defined or call.id|length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric \
strings with length 9!') }}{% endif %}[{{ call.id }}]{% endfor %}\
{% if message.tool_calls is not defined %}{{ message.content }}{% endif %}\
{% if message.role == 'tool' %}\
{% if message.tool_call_id|length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with \
length 9!') }}{% endif %}({{ message.tool_call_id }}){% endif %}{% endfor %}{{ tools }}"""


def with_template(template: str) -> Any:
    tokenizer = copy.deepcopy(BYTE_FALLBACK)
    tokenizer.chat_template = template
    return tokenizer


def text_of(template: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    prompt = ChatPrompt()
    prompt.tokenizer = with_template(template)
    ((_, ids),) = GivenMessages(messages, tools).encode(prompt)
    return str(prompt.tokenizer.decode(ids))


def test_a_template_that_renders_only_parts_is_given_parts() -> None:
    tokenizer = with_template(PARTS_ONLY)
    rendered = render_messages(tokenizer, [SYSTEM, USER, ANSWER, USER])
    assert rendered == "<system>Be brief.<user>Hello<assistant>Hi<user>Hello"
    prompt = ChatPrompt()
    prompt.tokenizer, prompt.message = tokenizer, "Hello"
    assert tokenizer.decode(prompt.encode()) == "<user>Hello"


@pytest.mark.parametrize("template", [NO_SYSTEM, SILENT_SYSTEM, TOOLS_NOT_TOLD])
def test_without_a_system_role_its_text_and_tools_are_in_the_first_user_message(template: str) -> None:
    assert render_messages(with_template(template), [SYSTEM, USER]) == "<user>Be brief.\n\nHello"
    assert render_messages(with_template(template), [SYSTEM, SYSTEM, USER, ANSWER]).startswith(
        "<user>Be brief.\n\nBe brief.\n\nHello<assistant>"
    )
    assert render_messages(with_template(template), [USER]) == "<user>Hello"
    assert not knows_tools(with_template(template))
    for messages in ([USER], [SYSTEM, USER], [USER, ANSWER, USER]):
        text = text_of(template, messages, [TOOL])
        assert re.search(
            r"<user>(Be brief\.\n\n)?You may call functions.*weather.*</tool_call>\n\nHello", text, re.DOTALL
        )


def test_a_template_that_takes_messages_as_they_are_is_given_them_so(tokenizer: Any) -> None:
    traits = traits_of(tokenizer)
    assert (traits.text, traits.parts, traits.system, traits.tools) == (True, False, True, False)


async def test_a_template_that_leaves_out_what_users_say_is_refused_at_the_start() -> None:
    for template in ("Hello", "{% for message in messages %}{{ message.role }}{% endfor %}"):
        chat_stream = ChatStream(engine=TransformersEngine(tiny(), with_template(template)))
        with pytest.raises(ValueError, match=r"^The model's chat template leaves out the text of the user's messages"):
            async with chat_stream:
                await chat_stream.wait_ready()


@pytest.mark.parametrize("call_id", ["call_0123456789abcdef01234567", "1", "functions.f:0", "a1B2c3D4e"])
def test_ids_of_calls_have_the_form_that_the_template_wants(call_id: str) -> None:
    call = {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": call_id},
    ]
    text = render_messages(with_template(MISTRAL), messages)
    shown = re.fullmatch(r"Hello\[([A-Za-z0-9]{9})\]5\(([A-Za-z0-9]{9})\)None", text)
    assert shown is not None
    assert shown[1] == shown[2]
    assert render_messages(with_template(MISTRAL), messages) == text
    if len(call_id) == 9:
        assert shown[1] == call_id


@pytest.mark.parametrize("calls", [[], None])
def test_no_calls_are_as_if_absent(calls: Any) -> None:
    assert render_messages(with_template(MISTRAL), [{**ANSWER, "tool_calls": calls}]) == "HiNone"


@pytest.mark.parametrize(
    "arguments",
    ['{"city": "\\ud83d"}', '{"\\udc00": 1}', '{"a": [{"b": "x\\ude00\\ud83d"}]}', '{"a": 1e999}', '{"a": NaN}'],
)
@pytest.mark.parametrize("template", [MISTRAL, NO_SYSTEM])
def test_arguments_that_no_text_can_hold_are_refused(arguments: str, template: str) -> None:
    json.loads(arguments)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}, USER]
    with pytest.raises(InvalidValue, match=r"^messages: the arguments of tool_calls must be JSON without half"):
        text_of(template, messages, [TOOL])
