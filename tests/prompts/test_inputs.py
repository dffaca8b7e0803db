"""Prompts of complete input: chat messages and plain texts."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from aiochatstream import AbstractChatPrompt, ChatPrompt
from aiochatstream.errors import InvalidValue
from aiochatstream.prompts import ChatInput, TextInput
from aiochatstream.prompts.tools import render_tools_as_text, supports_tools
from tests.model_templates import THINKING
from tests.prompts.templates import with_template

Message = dict[str, Any]

SYSTEM: Message = {"role": "system", "content": "Be short."}
USER: Message = {"role": "user", "content": "Hello"}
ANSWER: Message = {"role": "assistant", "content": "Hi!"}
CALL: Message = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLING: Message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT: Message = {"role": "tool", "tool_call_id": "1", "content": "5"}
TOOL: Message = {"type": "function", "function": {"name": "f", "description": "Does f."}}


class Transcript(AbstractChatPrompt):
    def build_initial_prompt(self, chat_prompt: AbstractChatPrompt) -> None:
        self.set_system("Be kind.")
        self.add_requester_msg("Q")
        self.add_responder_msg("A")

    def create_prompt(self) -> str:
        lines = [f"{content.role}: {content.message or ''}" for content in self.get_contents()]
        return "\n".join([self.system, *lines])


def with_tokenizer(prompt: AbstractChatPrompt, tokenizer: PreTrainedTokenizerBase) -> AbstractChatPrompt:
    prompt.tokenizer = tokenizer
    return prompt


def text_of(chat: ChatInput, prompt: AbstractChatPrompt, tokenizer: PreTrainedTokenizerBase) -> str:
    ((_, ids),) = chat.encode(with_tokenizer(prompt, tokenizer))
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize(
    "messages",
    [[USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER, USER], [USER, USER], [SYSTEM, SYSTEM, USER], [USER, ANSWER]],
)
def test_a_chat_template_renders_messages_in_any_order(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message]
) -> None:
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text_of(ChatInput(messages), ChatPrompt(), tokenizer) == expected


def test_a_prompt_class_writes_alternating_messages(tokenizer: PreTrainedTokenizerBase) -> None:
    text = text_of(ChatInput([USER, ANSWER, USER]), Transcript(), tokenizer)
    assert text == "Be kind.\nuser: Q\nassistant: A\nuser: Hello\nassistant: Hi!\nuser: Hello\nassistant: "
    assert text_of(ChatInput([SYSTEM, USER]), Transcript(), tokenizer).startswith("Be short.\nuser: Q")
    with pytest.raises(InvalidValue, match="messages: must be an optional system message, then alternating user"):
        text_of(ChatInput([USER, USER]), Transcript(), tokenizer)


def test_the_initial_prompt_of_the_class_precedes_the_messages(tokenizer: PreTrainedTokenizerBase) -> None:
    class Kind(ChatPrompt):
        build_initial_prompt = Transcript.build_initial_prompt

    for messages in ([USER], [USER, USER]):
        text = text_of(ChatInput(messages), Kind(), tokenizer)
        assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nQ<|im_end|>")
    text = text_of(ChatInput([SYSTEM, USER, USER]), Kind(), tokenizer)
    assert "Be kind." not in text


def test_the_thoughts_before_a_text_to_continue_remain(tokenizer: PreTrainedTokenizerBase) -> None:
    thinking = with_template(THINKING, tokenizer)
    answer = {**ANSWER, "reasoning_content": "They greet."}
    for messages in ([USER, answer], [USER, USER, answer]):  # with and without the prompt class
        text = text_of(ChatInput(messages, continues=True), ChatPrompt(), thinking)
        assert text.endswith("<think>They greet.</think>Hi!")
        thought = {**answer, "content": ""}
        text = text_of(ChatInput([*messages[:-1], thought], continues=True), ChatPrompt(), thinking)
        assert text.endswith("<think>They greet.")
    with pytest.raises(InvalidValue, match="cannot continue a thought"):
        text_of(ChatInput([USER, {**answer, "content": ""}], continues=True), ChatPrompt(), tokenizer)
    with pytest.raises(InvalidValue, match="alternating"):
        text_of(ChatInput([USER, {**answer, "content": ""}], continues=True), Transcript(), tokenizer)


def test_tools_are_rendered_as_text_if_the_template_does_not_support_them(tokenizer: PreTrainedTokenizerBase) -> None:
    assert not supports_tools(tokenizer)
    for prompt in (ChatPrompt(), Transcript()):
        text = text_of(ChatInput([SYSTEM, USER, CALLING, RESULT], [TOOL]), prompt, tokenizer)
        for part in ("Be short.\n\nYou may call", '"Does f."', '"arguments": {"x": 1}', "<tool_response>\n5\n"):
            assert part in text


def test_the_engine_reads_calls_only_if_the_template_renders_tools(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = ChatInput([], [TOOL])
    rendering = with_template("{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}", tokenizer)
    assert chat.tools_for(tokenizer) == ()
    assert chat.tools_for(rendering) == chat.tools_for(None) == (TOOL,)


def test_tools_as_text_keep_roles_alternating() -> None:
    messages = render_tools_as_text([USER, CALLING, RESULT, RESULT, ANSWER, USER], [TOOL])
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert messages[3]["content"].count("<tool_response>") == 2
    assert all(message.keys() == {"role", "content"} for message in messages)
    assert render_tools_as_text([USER, ANSWER], []) == [USER, ANSWER]
    messages = render_tools_as_text([USER, CALLING, RESULT, USER], [])
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[-1]["content"] == "<tool_response>\n5\n</tool_response>\nHello"


def test_deeply_nested_arguments_are_rendered_unchanged() -> None:
    for depth in range(1, sys.getrecursionlimit() + 10):
        arguments = '{"x":' * depth + "1" + "}" * depth
        calling = {**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        (message,) = render_tools_as_text([calling], [])
        assert message["content"].count("x") == depth


def test_a_template_that_supports_tools_renders_them(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for tool in tools or [] %}T:{{ tool.function.name }} {% endfor %}{% for m in messages %}{{ m.role }}"
    template += "{% for c in m.tool_calls or [] %}({{ c.function.arguments.x }}){% endfor %} {% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    text = text_of(ChatInput([USER, CALLING, RESULT], [TOOL]), ChatPrompt(), tokenizer)
    assert text == "T:f user assistant(1) tool "


def test_without_a_tokenizer_only_messages_are_returned() -> None:
    assert list(ChatInput([SYSTEM, USER]).encode(ChatPrompt())) == [([SYSTEM, USER], [])]
    assert list(ChatInput([USER, USER]).encode(ChatPrompt())) == [([USER, USER], [])]
    assert list(TextInput(["a", "b"]).encode(ChatPrompt()))[1] == ([{"role": "user", "content": "b"}], [])


def test_texts_are_encoded_unchanged(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("One two")["input_ids"]
    prompts = list(TextInput(["One two", ids]).encode(with_tokenizer(Transcript(), tokenizer)))
    assert prompts == [([{"role": "user", "content": "One two"}], ids), ([], ids)]
    with pytest.raises(InvalidValue, match="prompt: must contain at least one token"):
        list(TextInput([""]).encode(with_tokenizer(ChatPrompt(), tokenizer)))


@pytest.mark.parametrize(
    ("chat_or_text", "too_long"),
    [
        (TextInput(["a" * 160]), False),
        (TextInput(["a", "a" * 161]), True),
        (TextInput([[1] * 10]), False),
        (TextInput([[1], [1] * 11]), True),
        (ChatInput([USER, {"role": "user", "content": "a" * 160}]), True),
        (ChatInput([USER, ANSWER]), False),
        (ChatInput([USER], [TOOL] * 10), True),
    ],
)
def test_too_long_input_is_detected_without_tokenising(chat_or_text: ChatInput | TextInput, too_long: bool) -> None:
    assert chat_or_text.too_long(10) == too_long


@pytest.mark.parametrize("messages", [[USER, ANSWER, USER], [USER, ANSWER, USER, USER]], ids=["pairs", "other"])
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_and_variables_reach_the_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], field: str
) -> None:
    template = "{% for m in messages %}[{{ m.content }}|{{ m.reasoning_content }}]{% endfor %}{{ language }}"
    prompt = ChatPrompt()
    prompt.template_kwargs = {"language": "ja"}
    messages = [{**message, field: f"{message['role']} thinks"} for message in messages]
    reading = with_template(template, tokenizer)
    text = "[Hello|][Hi!|assistant thinks]" + "[Hello|]" * (len(messages) - 2) + "ja"
    assert text_of(ChatInput(messages), prompt, reading) == text
    ((simple, _),) = ChatInput(messages).encode(with_tokenizer(prompt, reading))
    assert all(message.keys() == {"role", "content"} for message in simple)


def test_thoughts_of_calls_reach_a_template_without_tools(tokenizer: PreTrainedTokenizerBase) -> None:
    template = "{% for m in messages %}[{{ m.content }}|{{ m.reasoning_content }}]{% endfor %}"
    messages = [USER, {**CALLING, "reasoning_content": "Use f."}, RESULT, USER]
    text = text_of(ChatInput(messages), ChatPrompt(), with_template(template, tokenizer))
    assert '"arguments": {"x": 1}}\n</tool_call>|Use f.]' in text


def test_thoughts_count_as_text(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = ChatInput([USER, {**ANSWER, "reasoning": "x" * 1600}, USER])
    assert chat.too_long(100)
    assert not chat.too_long(102)
