"""Prompts for messages and texts that a client gives whole."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from aiochatstream import AbstractChatPrompt, ChatPrompt
from aiochatstream.errors import InvalidValue
from aiochatstream.prompts import GivenMessages, GivenTexts
from aiochatstream.prompts.tools import in_words, knows_tools

SYSTEM = {"role": "system", "content": "Be short."}
USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi!"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "5"}
TOOL = {"type": "function", "function": {"name": "f", "description": "Does f."}}


class Transcript(AbstractChatPrompt):
    def build_initial_prompt(self, chat_prompt: AbstractChatPrompt) -> None:
        self.set_system("Be kind.")
        self.add_requester_msg("Q")
        self.add_responder_msg("A")

    def create_prompt(self) -> str:
        lines = [f"{one.role}: {one.message or ''}" for one in self.get_contents()]
        return "\n".join([self.system, *lines])


def with_tokenizer(prompt: AbstractChatPrompt, tokenizer: Any) -> AbstractChatPrompt:
    prompt.tokenizer = tokenizer
    return prompt


def text_of(given: GivenMessages | GivenTexts, prompt: AbstractChatPrompt, tokenizer: Any) -> str:
    ((_, ids),) = given.encode(with_tokenizer(prompt, tokenizer))
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize(
    "messages",
    [[USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER, USER], [USER, USER], [SYSTEM, SYSTEM, USER], [USER, ANSWER]],
)
def test_a_chat_template_tells_whatever_messages_there_are(tokenizer: Any, messages: list[dict[str, Any]]) -> None:
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text_of(GivenMessages(messages), ChatPrompt(), tokenizer) == expected


def test_a_prompt_class_writes_what_a_conversation_could_be(tokenizer: Any) -> None:
    written = text_of(GivenMessages([USER, ANSWER, USER]), Transcript(), tokenizer)
    assert written == "Be kind.\nuser: Q\nassistant: A\nuser: Hello\nassistant: Hi!\nuser: Hello\nassistant: "
    assert text_of(GivenMessages([SYSTEM, USER]), Transcript(), tokenizer).startswith("Be short.\nuser: Q")
    with pytest.raises(InvalidValue, match="messages: must be a system message or none, then user and assistant"):
        text_of(GivenMessages([USER, USER]), Transcript(), tokenizer)


def test_the_class_own_system_message_and_examples_hold_with_a_template_too(tokenizer: Any) -> None:
    class Kind(ChatPrompt):
        build_initial_prompt = Transcript.build_initial_prompt

    for messages in ([USER], [USER, USER]):
        written = text_of(GivenMessages(messages), Kind(), tokenizer)
        assert written.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nQ<|im_end|>")
    written = text_of(GivenMessages([SYSTEM, USER, USER]), Kind(), tokenizer)
    assert "Be kind." not in written


def test_tools_are_told_in_words_where_the_template_knows_none(tokenizer: Any) -> None:
    assert not knows_tools(tokenizer)
    for prompt in (ChatPrompt(), Transcript()):
        written = text_of(GivenMessages([SYSTEM, USER, CALLING, RESULT], [TOOL]), prompt, tokenizer)
        for part in ("Be short.\n\nYou may call", '"Does f."', '"arguments": {"x": 1}', "<tool_response>\n5\n"):
            assert part in written


def test_the_words_keep_to_roles_in_turn() -> None:
    told = in_words([USER, CALLING, RESULT, RESULT, ANSWER, USER], [TOOL])
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert told[3]["content"].count("<tool_response>") == 2
    assert all(message.keys() == {"role", "content"} for message in told)
    assert in_words([USER, ANSWER], []) == [USER, ANSWER]
    told = in_words([USER, CALLING, RESULT, USER], [])
    assert [message["role"] for message in told] == ["user", "assistant", "user"]
    assert told[-1]["content"] == "<tool_response>\n5\n</tool_response>\nHello"


def test_arguments_that_are_nested_too_deeply_to_be_rewritten_stay_as_they_are() -> None:
    for depth in range(1, sys.getrecursionlimit() + 10):
        arguments = '{"x":' * depth + "1" + "}" * depth
        calling = {**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        (told,) = in_words([calling], [])
        assert told["content"].count("x") == depth


def test_a_template_that_knows_tools_is_given_them_as_they_are(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for tool in tools or [] %}T:{{ tool.function.name }} {% endfor %}{% for m in messages %}{{ m.role }}"
    template += "{% for c in m.tool_calls or [] %}({{ c.function.arguments.x }}){% endfor %} {% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    written = text_of(GivenMessages([USER, CALLING, RESULT], [TOOL]), ChatPrompt(), tokenizer)
    assert written == "T:f user assistant(1) tool "


def test_an_engine_without_a_tokenizer_is_told_the_messages() -> None:
    assert list(GivenMessages([SYSTEM, USER]).encode(ChatPrompt())) == [([SYSTEM, USER], [])]
    assert list(GivenMessages([USER, USER]).encode(ChatPrompt())) == [([USER, USER], [])]
    assert list(GivenTexts(["a", "b"]).encode(ChatPrompt()))[1] == ([{"role": "user", "content": "b"}], [])


def test_texts_are_gone_on_with_as_they_are(tokenizer: Any) -> None:
    ids = tokenizer("One two")["input_ids"]
    made = list(GivenTexts(["One two", ids]).encode(with_tokenizer(Transcript(), tokenizer)))
    assert made == [([{"role": "user", "content": "One two"}], ids)] * 2
    with pytest.raises(InvalidValue, match="prompt: must have at least one token"):
        list(GivenTexts([""]).encode(with_tokenizer(ChatPrompt(), tokenizer)))


@pytest.mark.parametrize(
    ("given", "too_long"),
    [
        (GivenTexts(["a" * 160]), False),
        (GivenTexts(["a", "a" * 161]), True),
        (GivenTexts([[1] * 10]), False),
        (GivenTexts([[1], [1] * 11]), True),
        (GivenMessages([USER, {"role": "user", "content": "a" * 160}]), True),
        (GivenMessages([USER, ANSWER]), False),
        (GivenMessages([USER], [TOOL] * 10), True),
    ],
)
def test_what_cannot_fit_is_known_before_it_is_read(given: GivenMessages | GivenTexts, too_long: bool) -> None:
    assert given.too_long(10) == too_long
