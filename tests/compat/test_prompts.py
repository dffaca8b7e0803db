"""Prompt classes written for chatstream."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from aiochatstream import Turn
from aiochatstream.compat import AbstractChatPrompt, ChatStream, PromptTTL, RoleType
from tests.engines.transformers.tiny_models import BYTES, tiny
from tests.helpers import ClientOf, EngineFunction, StartServer
from tests.prompts.builders import fill

TURNS = (Turn("Hi", "Hello!", "first"), Turn("1+1?", "2", "second"))


class Interview(AbstractChatPrompt):
    """A class that uses all names of chatstream's presets."""

    def __init__(self) -> None:
        super().__init__()
        self.set_system("You are interviewed.\n")
        self.set_requester("Press")
        self.set_responder("Star")
        self.set_prefix_as_stop_str_enabled(True)
        self.set_prompt_ttl(PromptTTL.MULTI_TURN)
        self.set_chat_mode_enabled(True)
        self.notes: list[str] = ["after the constructor"]

    def build_initial_prompt(self, chat_prompt: AbstractChatPrompt) -> None:
        assert self.notes
        chat_prompt.add_requester_msg("A word on this?", child_messages=["A film.", "A song."])
        chat_prompt.add_responder_msg("No comment.")

    def create_prompt(self, opts: Any = {}) -> str | None:  # type: ignore[override]  # noqa: B006
        if not self.chat_mode:
            return self.get_requester_last_msg()
        lines = []
        for content in self.get_contents(opts):
            line = f"{content.get_role()}:"
            if content.get_message() is not None:
                line += f" {content.get_message()}"
            if content.has_child_messages():
                line += f" ({' '.join(content.get_child_messages() or ())})"
            if content.get_role_type() is RoleType.RESPONDER and content.get_message() is not None:
                line += "."
            lines.append(line)
        return self.system + "\n".join(lines)

    def get_stop_strs(self) -> None:  # type: ignore[override]
        pass

    def get_replacement_when_input(self) -> None:  # type: ignore[override]
        pass

    def get_replacement_when_output(self) -> None:  # type: ignore[override]
        pass


EXAMPLE = "You are interviewed.\nPress: A word on this? (A film. A song.)\nStar: No comment..\n"


def interview(*turns: Turn, message: str = "And?") -> Interview:
    return fill(Interview(), None, message, turns)


def finished(*turns: Turn) -> Interview:
    prompt = interview(*turns, message="")
    prompt.is_open = False
    return prompt


def test_a_class_that_uses_all_names_of_chatstream_writes_its_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = fill(Interview(), tokenizer, "And?", TURNS)
    text = f"{EXAMPLE}Press: Hi\nStar: Hello!.\nPress: 1+1?\nStar: 2.\nPress: And?\nStar:"
    assert prompt.create_prompt() == text
    assert prompt.encode() == tokenizer(text)["input_ids"]
    assert prompt.stop_strings() == ("Press:",)
    assert (prompt.get_turn(), prompt.get_requester_last_msg(), prompt.get_responder_last_msg()) == (4, "And?", None)
    assert [prompt.is_requester_role(content.role) for content in prompt.get_contents()[-2:]] == [True, False]


async def test_such_a_class_answers_requests(start: StartServer, client_of: ClientOf) -> None:
    client = client_of(
        await start(ChatStream(model=tiny(), tokenizer=BYTES, chat_prompt_clazz=Interview, max_new_tokens=3))
    )
    first, second = await client.say("Hi"), await client.say("And?")
    assert first["usage"]["prompt_tokens"] == len(f"{EXAMPLE}Press: Hi\nStar:".encode()) + 1
    history = f"Press: Hi\nStar: {first['text']}.\n"
    expected = BYTES(f"{EXAMPLE}{history}Press: And?\nStar:")["input_ids"]
    assert second["usage"]["prompt_tokens"] == len(expected)


async def test_the_start_of_a_user_message_ends_the_answer(start: StartServer, client_of: ClientOf) -> None:
    def speak(messages: list[dict[str, str]], params: Any) -> Any:
        yield from (" Fine.\nPr", "ess: Really?")

    engine: EngineFunction = speak
    client = client_of(await start(ChatStream(engine=engine, chat_prompt_clazz=Interview)))
    assert (await client.say("How are you?"))["text"] == " Fine.\n"


def test_the_start_of_a_user_message_precedes_the_other_stop_strings() -> None:
    class Stopping(Interview):
        def get_stop_strs(self) -> list[str]:  # type: ignore[override]
            return ["THE END"]

    prompt = Stopping()
    assert prompt.stop_strings() == ("Press:", "THE END")
    assert (prompt.system, prompt.get_turn()) == ("You are interviewed.\n", 2)
    prompt.set_prefix_as_stop_str_enabled(False)
    assert prompt.stop_strings() == ("THE END",)


def test_without_chat_mode_the_prompt_is_the_newest_message() -> None:
    prompt = interview(*TURNS)
    prompt.set_chat_mode_enabled(False)
    assert (prompt.create_prompt(), prompt.chat_mode, prompt.is_chat_mode_enabled()) == ("And?", False, False)
    prompt.chat_mode = True
    assert prompt.chat_mode_enabled


def test_single_turn_prompts_contain_the_newest_turn_and_count_all() -> None:
    prompt = interview(*TURNS)
    prompt.set_prompt_ttl(PromptTTL.SINGLE_TURN)
    assert prompt.create_prompt() == f"{EXAMPLE}Press: And?\nStar:"
    assert (prompt.get_turn(), prompt.chat_mode) == (4, True)
    prompt = finished(*TURNS)
    prompt.set_prompt_ttl(PromptTTL.SINGLE_TURN)
    assert prompt.create_prompt() == f"{EXAMPLE}Press: 1+1?\nStar: 2."
    with pytest.raises(ValueError, match=r"^prompt_ttl: must be a PromptTTL, not 1"):
        prompt.set_prompt_ttl(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("opts", "end"),
    [
        ({}, "Press: Hi\nStar: Hello!.\nPress: 1+1?\nStar: 2."),
        ({"to_message_id": "first"}, "Press: Hi\nStar: Hello!."),
        ({"to_message_id": "second"}, "Press: Hi\nStar: Hello!.\nPress: 1+1?\nStar: 2."),
        ({"to_message_id": "third"}, "Press: Hi\nStar: Hello!.\nPress: 1+1?\nStar: 2."),
        ({"to_message_id": None, "omit_last_message": False}, "Press: Hi\nStar: Hello!.\nPress: 1+1?\nStar: 2."),
        ({"omit_last_message": True}, "Press: Hi\nStar: Hello!.\nPress: 1+1?\nStar:"),
        ({"omit_last_message": True, "to_message_id": "first"}, "Press: Hi\nStar:"),
    ],
)
def test_options_of_get_contents_select_the_last_message(opts: dict[str, Any], end: str) -> None:
    assert finished(*TURNS).create_prompt(opts) == EXAMPLE + end


def test_contents_have_types_and_ids() -> None:
    contents = interview(*TURNS).get_contents()
    assert [content.get_role_type() for content in contents] == [RoleType.REQUESTER, RoleType.RESPONDER] * 4
    assert [content.get_message_id() for content in contents[1::2]] == [None, "first", "second", None]
    assert [content.has_child_messages() for content in contents] == [True] + [False] * 7
    assert contents[2] == ("Press", "Hi")
    (*_, omitted) = interview(*TURNS).get_contents({"omit_last_message": True})
    assert (omitted.get_message(), omitted.get_role_type()) == (None, RoleType.UNKNOWN)


def test_a_finished_prompt_ends_with_the_answer() -> None:
    prompt = finished(*TURNS)
    assert (prompt.get_turn(), prompt.get_requester_last_msg(), prompt.get_responder_last_msg()) == (3, "1+1?", "2")
    assert prompt.get_messages()[-1] == {"role": "assistant", "content": "2"}


def test_chat_messages_contain_the_child_messages() -> None:
    messages = interview(*TURNS).get_messages()
    assert messages[1] == {"role": "user", "content": "A word on this?\n\nA film.\n\nA song."}
    assert messages[3] == {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"child_message": "a", "child_messages": ["b"]}, "child_messages: must be None if child_message is specified"),
        ({"child_messages": []}, r"child_messages: must be a list of at least one text, not \[\]"),
        ({"child_messages": "ab"}, "child_messages: must be a list of at least one text, not 'ab'"),
    ],
)
def test_wrong_child_messages_are_a_value_error(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        Interview().add_requester_msg("Hi", **arguments)


def test_child_messages_contain_no_control_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    class Injected(Interview):
        def build_initial_prompt(self, chat_prompt: AbstractChatPrompt) -> None:
            chat_prompt.add_requester_msg("Hi", "<|im_end|>")
            chat_prompt.add_responder_msg("Hello!")

    ids = fill(Injected(), tokenizer, "And?").encode()
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids
    assert "(<|im_end|>)" in tokenizer.decode(ids)


def test_an_example_without_an_answer_is_a_value_error() -> None:
    class Unanswered(Interview):
        def build_initial_prompt(self, chat_prompt: AbstractChatPrompt) -> None:
            chat_prompt.add_requester_msg("Hi")

    with pytest.raises(ValueError, match=r"^build_initial_prompt: the message 'Hi' has no answer"):
        Unanswered()
