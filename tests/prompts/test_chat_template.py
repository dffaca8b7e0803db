"""Messages as a client gives them, written by chat templates."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import ByT5Tokenizer

from aiochatstream.errors import InvalidValue
from aiochatstream.prompts import encode_messages, render_messages

USER = {"role": "user", "content": "What is the weather in 東京?"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]

WITH_TOOLS = """\
{%- if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}<tool_call>{"name": "{{ call.function.name }}", "arguments": \
{{ call.function.arguments | tojson }}}</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""

ALTERNATING = """\
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}{{ message.role }}: {{ message.content | trim }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


def with_template(tokenizer: Any, template: str) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_the_ids_are_those_of_the_chat_template(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "Fine."}, USER]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"]
    assert encode_messages(tokenizer, messages) == expected
    assert tokenizer.decode(expected) == render_messages(tokenizer, messages)


def test_tools_calls_and_results_reach_the_template_and_arguments_as_objects(tokenizer: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "東京"}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    before = copy.deepcopy(messages)
    text = render_messages(with_template(tokenizer, WITH_TOOLS), messages, TOOLS)
    assert '"name": "weather", "description": "Tells the weather."' in text
    assert '<tool_call>{"name": "weather", "arguments": {"city": "東京"}}</tool_call><|im_end|>' in text
    assert "<|im_start|>tool\nrain<|im_end|>" in text
    assert messages == before


@pytest.mark.parametrize("arguments", [None, "", {}])
def test_a_call_without_arguments_has_an_empty_object(tokenizer: Any, arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert '"arguments": {}}</tool_call>' in render_messages(with_template(tokenizer, WITH_TOOLS), messages)


def test_a_developer_is_told_as_system_where_the_template_knows_none(tokenizer: Any) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, USER]
    assert render_messages(tokenizer, messages).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    knowing = with_template(tokenizer, "{# developer #}{{ messages[0].role }}")
    assert render_messages(knowing, messages) == "developer"


def test_an_answer_is_continued_after_what_the_template_begins_it_with(tokenizer: Any) -> None:
    messages = [USER, {"role": "assistant", "content": "It is "}]
    ids = encode_messages(with_template(tokenizer, WITH_TOOLS), messages, continue_final=True)
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n<think>\nIt is ")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, USER], "Conversation roles must alternate user/assistant/user/assistant/..."),
        ([], "empty conversation"),
    ],
    ids=str,
)
def test_what_a_template_does_not_take_is_told_in_its_own_words(
    tokenizer: Any, messages: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(InvalidValue, match=r"^The model's chat template refuses this conversation: ") as error:
        render_messages(with_template(tokenizer, ALTERNATING), messages)
    assert message.rstrip(".") in error.value.detail


def test_tools_that_are_nested_too_deeply_are_no_crash(tokenizer: Any) -> None:
    parameters: dict[str, Any] = {}
    for _ in range(5000):
        parameters = {"items": parameters}
    tools = [{"type": "function", "function": {"name": "deep", "parameters": parameters}}]
    with pytest.raises(InvalidValue, match="recursion"):
        render_messages(with_template(tokenizer, WITH_TOOLS), [USER], tools)


def test_a_message_without_what_the_template_needs_is_no_crash(tokenizer: Any) -> None:
    with pytest.raises(InvalidValue, match=r"conversation: .* has no attribute 'content'\.$"):
        render_messages(tokenizer, [{"role": "user"}])


def test_content_that_a_template_cannot_join_is_no_crash(tokenizer: Any) -> None:
    with pytest.raises(InvalidValue, match=r"conversation: can only concatenate str"):
        render_messages(tokenizer, [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}])


@pytest.mark.parametrize("arguments", ["{", "[" * 100_000], ids=["cut off", "deep"])
def test_arguments_that_are_no_json_are_refused(tokenizer: Any, arguments: str) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": arguments}}
    with pytest.raises(InvalidValue, match=r"^messages: the arguments of tool_calls must be JSON\.$"):
        render_messages(tokenizer, [USER, {"role": "assistant", "content": "", "tool_calls": [call]}])


@pytest.mark.parametrize("messages", [[], [USER], [USER, {"role": "assistant", "content": None}]], ids=str)
def test_only_an_assistants_text_can_be_continued(tokenizer: Any, messages: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidValue, match=r"^messages: the last one must be an assistant's text"):
        encode_messages(tokenizer, messages, continue_final=True)


def test_without_a_template_it_is_said_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"no chat template.*chat_prompt_clazz"):
        render_messages(ByT5Tokenizer(), [USER])
