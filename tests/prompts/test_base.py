"""AbstractChatPrompt and its subclasses."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from aiochatstream import AbstractChatPrompt, Content, Turn
from tests.engines.tokenizers import BYTE_FALLBACK
from tests.prompts.builders import HumanAndBot, fill


class ForChatStream(AbstractChatPrompt):
    """A prompt class written for chatstream."""

    def __init__(self) -> None:
        super().__init__()
        self.set_system("Be brief.\n")
        self.set_requester("Guest")
        self.set_responder("Host")

    def build_initial_prompt(self, chat_prompt: AbstractChatPrompt) -> None:
        chat_prompt.add_requester_msg("1+1?")
        chat_prompt.add_responder_msg("2")

    def create_prompt(self, opts: Any = {}) -> str:  # noqa: B006
        text = self.system
        for content in self.get_contents(opts):
            message = content.get_message()
            text += f"{content.get_role()}: {message}\n" if message else f"{content.get_role()}:"
        return text


def test_a_subclass_writes_the_whole_text(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = fill(HumanAndBot(), tokenizer, "And?", (Turn("Hi", "Hello!", "1"), Turn("Well?", "Well.", "2")))
    assert prompt.create_prompt() == "<human>: Hi\n<bot>: Hello!\n<human>: Well?\n<bot>: Well.\n<human>: And?\n<bot>:"
    assert prompt.encode() == tokenizer(prompt.create_prompt())["input_ids"]
    assert prompt.get_stop_strs() == ["<human>:"]
    prompt.conversation = prompt.conversation.starting_at(1)
    assert prompt.create_prompt() == "<human>: Well?\n<bot>: Well.\n<human>: And?\n<bot>:"
    assert prompt.get_contents()[-2:] == [Content("<human>", "And?"), Content("<bot>", None)]
    assert [message["role"] for message in prompt.get_messages()] == ["user", "assistant", "user"]


def test_a_prompt_class_written_for_chatstream_works_unchanged(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = fill(ForChatStream(), tokenizer, "And?", (Turn("Hi", "Hello!", "1"),))
    text = "Be brief.\nGuest: 1+1?\nHost: 2\nGuest: Hi\nHost: Hello!\nGuest: And?\nHost:"
    assert prompt.create_prompt() == text
    assert prompt.encode() == tokenizer(text)["input_ids"]


def test_messages_can_be_added_by_method_calls() -> None:
    prompt = HumanAndBot()
    prompt.add_requester_msg("Hi")
    prompt.add_responder_msg("Hello!")
    prompt.add_requester_msg("And?")
    prompt.add_responder_msg(None)
    assert prompt.create_prompt() == "<human>: Hi\n<bot>: Hello!\n<human>: And?\n<bot>:"


def test_added_messages_must_alternate() -> None:
    class Unanswered(HumanAndBot):
        def build_initial_prompt(self, chat_prompt: AbstractChatPrompt) -> None:
            chat_prompt.add_requester_msg("Hi")

    with pytest.raises(ValueError, match=r"^build_initial_prompt: the message 'Hi' has no answer"):
        Unanswered()
    prompt = HumanAndBot()
    with pytest.raises(ValueError, match=r"^add_responder_msg: must follow add_requester_msg"):
        prompt.add_responder_msg("Hello!")
    prompt.add_requester_msg("Hi")
    with pytest.raises(ValueError, match=r"^add_requester_msg: the message 'Hi' has no answer"):
        prompt.add_requester_msg("And?")


class WithoutNewlines(HumanAndBot):
    """Prompt of a model with another notation for newlines."""

    def get_replacement_when_input(self) -> list[tuple[str, str]]:
        return [("\n", "<NL>")]


def test_an_open_answer_follows_the_text_with_input_replacements(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = fill(WithoutNewlines(), tokenizer, "And?")
    prompt.open_answer = " One,\ntwo"
    assert tokenizer.decode(prompt.encode()) == "<human>: And?\n<bot>: One,<NL>two"
    assert prompt.get_messages()[-1] == {"role": "assistant", "content": " One,<NL>two"}
    assert prompt.get_contents()[-1] == Content("<bot>", None)


@pytest.mark.parametrize("open_answer", ["cd", " cd", "d日 "])
def test_the_tokenizer_inserts_no_space_before_an_open_answer(open_answer: str) -> None:
    prompt = fill(HumanAndBot(), BYTE_FALLBACK, "ab")
    text = prompt.create_prompt()
    prompt.open_answer = open_answer
    assert BYTE_FALLBACK.decode(prompt.encode()) == text + open_answer
