"""What the model is told, and what of it when the context is short."""

from __future__ import annotations

import copy
import re
from itertools import groupby, pairwise
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer

from aiochatstream import AbstractChatPrompt, ChatPrompt, Content, Conversation, Turn
from aiochatstream.errors import InvalidValue, TooLarge
from aiochatstream.prompts import encode_messages, fit
from tests.engines.tokenizers import BYTE_FALLBACK

HISTORY = (Turn("日本の首都は？", "東京です。", "1"), Turn("And of France?", "Paris.", "2", "interrupted"))


class HumanAndBot(AbstractChatPrompt):
    """The example in the docstring of AbstractChatPrompt."""

    def __init__(self) -> None:
        super().__init__()
        self.set_requester("<human>")
        self.set_responder("<bot>")

    def create_prompt(self) -> str:
        lines = [f"{c.role}:" if c.message is None else f"{c.role}: {c.message}" for c in self.get_contents()]
        return "\n".join(lines)

    def get_stop_strs(self) -> list[str]:
        return ["<human>:"]


class ForChatStream(AbstractChatPrompt):
    """As people wrote them for chatstream: what it hands over is taken, and its methods are there."""

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
            said = content.get_message()
            text += f"{content.get_role()}: {said}\n" if said else f"{content.get_role()}:"
        return text


class CountingPrompt(ChatPrompt):
    """Counts how often it is tokenised."""

    encoded = 0

    def encode(self) -> list[int]:
        self.encoded += 1
        return super().encode()


def made(
    tokenizer: Any,
    message: str,
    turns: tuple[Turn, ...] = (),
    *,
    system: str = "",
    clazz: type[AbstractChatPrompt] = ChatPrompt,
) -> Any:
    prompt = clazz()
    prompt.set_system(system)
    prompt.conversation = Conversation(turns, number=len(turns))
    prompt.message = message
    prompt.tokenizer = tokenizer
    return prompt


@pytest.mark.parametrize("system", ["", "You answer in one word. 🗼"])
@pytest.mark.parametrize("turns", [(), HISTORY])
def test_a_chat_prompt_has_the_ids_of_the_chat_template(tokenizer: Any, system: str, turns: tuple[Turn, ...]) -> None:
    prompt = made(tokenizer, "नमस्ते", turns, system=system)
    messages = [{"role": "system", "content": system}] if system else []
    if turns:
        messages += [
            {"role": "user", "content": "日本の首都は？"},
            {"role": "assistant", "content": "東京です。"},
            {"role": "user", "content": "And of France?"},
            {"role": "assistant", "content": "Paris."},
        ]
    messages.append({"role": "user", "content": "नमस्ते"})
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"]
    assert prompt.get_messages() == messages
    assert prompt.encode() == ids
    assert tokenizer.decode(ids) == prompt.create_prompt()
    assert prompt.create_prompt().endswith("<|im_start|>assistant\n")


def test_a_tokenizer_that_adds_a_bos_of_its_own_does_not_double_that_of_the_template(tokenizer: Any) -> None:
    adding = copy.deepcopy(tokenizer)
    bos = adding.bos_token_id
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{adding.bos_token} $A", special_tokens=[(adding.bos_token, bos)]
    )
    prompt = made(adding, "Hello")
    assert adding(prompt.create_prompt())["input_ids"][:2] == [bos, bos]
    ids = prompt.encode()
    assert ids[0] == bos
    assert ids[1] != bos


@pytest.mark.parametrize("tokenizer_without", [ByT5Tokenizer(), None])
def test_a_tokenizer_without_a_template_is_refused_with_what_to_do(tokenizer_without: Any) -> None:
    prompt = made(tokenizer_without, "Hello")
    for method in (prompt.encode, prompt.create_prompt):
        with pytest.raises(ValueError, match=r"no chat template.*chat_prompt_clazz.*AbstractChatPrompt"):
            method()


def test_a_system_text_that_the_template_refuses_is_told_in_a_sentence(tokenizer: Any) -> None:
    refusing = copy.copy(tokenizer)
    refusing.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}Hello"
    )
    prompt = made(refusing, "Hello")
    prompt.set_system("Be brief.")
    with pytest.raises(InvalidValue, match="chat template refuses this conversation: System role not supported"):
        prompt.encode()
    prompt.set_system("")
    assert prompt.create_prompt() == "Hello"


def test_a_prompt_class_of_ones_own_writes_exactly_its_text(tokenizer: Any) -> None:
    prompt = made(tokenizer, "And?", (Turn("Hi", "Hello!", "1"), Turn("Well?", "Well.", "2")), clazz=HumanAndBot)
    assert prompt.create_prompt() == "<human>: Hi\n<bot>: Hello!\n<human>: Well?\n<bot>: Well.\n<human>: And?\n<bot>:"
    assert prompt.encode() == tokenizer(prompt.create_prompt())["input_ids"]
    assert prompt.get_stop_strs() == ["<human>:"]
    prompt.conversation = prompt.conversation.starting_at(1)
    assert prompt.create_prompt() == "<human>: Well?\n<bot>: Well.\n<human>: And?\n<bot>:"
    assert prompt.get_contents()[-2:] == [Content("<human>", "And?"), Content("<bot>", None)]
    assert [message["role"] for message in prompt.get_messages()] == ["user", "assistant", "user"]


TURNS = tuple(Turn(f"This is question number {n} of many.", f"And this is answer {n}.", str(n)) for n in range(12))
SYSTEM = "You are a lighthouse keeper."


def test_nothing_is_cut_from_a_prompt_that_just_fits(tokenizer: Any) -> None:
    prompt = made(tokenizer, "Hello", TURNS, system=SYSTEM)
    ids = prompt.encode()
    assert fit(prompt, context_len=len(ids) + 10, max_new_tokens=10) == ids
    assert prompt.conversation.first == 0


def test_over_the_context_whole_oldest_turns_go_until_three_quarters_of_the_room_are_left(tokenizer: Any) -> None:
    prompt = made(tokenizer, "Hello", TURNS, system=SYSTEM)
    room = len(prompt.encode()) - 1
    ids = fit(prompt, context_len=room + 10, max_new_tokens=10)
    first = prompt.conversation.first
    assert prompt.conversation == Conversation(TURNS, number=12, first=first)
    assert ids == made(tokenizer, "Hello", TURNS[first:], system=SYSTEM).encode()
    assert len(ids) <= 0.75 * room
    one_more = made(tokenizer, "Hello", TURNS[first - 1 :], system=SYSTEM).encode()
    assert len(one_more) > 0.75 * room, "a turn was left out that had room"


def test_the_system_message_and_the_templates_head_stay_when_turns_go(tokenizer: Any) -> None:
    prompt = made(tokenizer, "Hello", TURNS, system=SYSTEM)
    head = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nThis is question number "
    text = tokenizer.decode(fit(prompt, context_len=200, max_new_tokens=10))
    assert prompt.conversation.first > 0
    assert text.startswith(f"{head}{prompt.conversation.first} of many.")


def test_after_a_cut_the_start_of_the_prompt_stays_for_several_turns(tokenizer: Any) -> None:
    conversation = Conversation()
    prompts: list[tuple[int, list[int]]] = []
    for number in range(40):
        prompt = made(tokenizer, f"Question {number:02}: tell me of it.", system=SYSTEM)
        prompt.conversation = conversation.begin(str(number))
        ids = fit(prompt, context_len=400, max_new_tokens=50)
        prompts.append((prompt.conversation.first, ids))
        conversation = prompt.conversation.with_turn(Turn(prompt.message, f"Answer {number:02}.", str(number)))
    stretches = [list(stretch) for _, stretch in groupby(prompts, key=lambda made: made[0])]
    assert len(stretches) > 2
    for stretch in stretches[:-1]:
        assert len(stretch) >= 3
    for stretch in stretches:
        for (_, before), (_, after) in pairwise(stretch):
            assert after[: len(before)] == before


@pytest.mark.parametrize("turns", [(), TURNS])
def test_a_newest_message_that_is_too_long_alone_is_refused_with_how_much_exactly(
    tokenizer: Any, turns: tuple[Turn, ...]
) -> None:
    def fitted(words: int) -> list[int]:
        return fit(made(tokenizer, "word" + " word" * (words - 1), turns), context_len=100, max_new_tokens=20)

    with pytest.raises(TooLarge, match=r"^user_input: \d+ tokens too long\. .* room for 80 of the 100 tokens") as error:
        fitted(200)
    found = re.search(r"(\d+) tokens too long", error.value.detail)
    assert found is not None
    fits = 200 - int(found[1])
    assert len(fitted(fits)) == 80
    with pytest.raises(TooLarge, match=r"^user_input: 1 tokens too long\."):
        fitted(fits + 1)


def test_a_far_too_long_message_is_refused_without_tokenising_it(tokenizer: Any) -> None:
    longest = 16 * 100
    tried = made(tokenizer, "x" * longest, clazz=CountingPrompt)
    with pytest.raises(TooLarge, match="tokens too long"):
        fit(tried, context_len=100, max_new_tokens=20)
    assert tried.encoded > 0
    refused = made(tokenizer, "x" * (longest + 1), clazz=CountingPrompt)
    with pytest.raises(TooLarge, match=rf"^user_input: {longest + 1} characters, at most {longest} are read\.$"):
        fit(refused, context_len=100, max_new_tokens=20)
    assert refused.encoded == 0


def test_of_a_history_that_cannot_fit_only_the_end_is_tokenised(tokenizer: Any) -> None:
    read = []

    class Measured(ChatPrompt):
        def encode(self) -> list[int]:
            read.append(
                sum(len(turn.user + turn.answer) for turn in self.conversation.turns[self.conversation.first :])
            )
            return super().encode()

    prompt = made(tokenizer, "And?", tuple(Turn("x" * 40, "y" * 40, str(n)) for n in range(1000)), clazz=Measured)
    assert len(fit(prompt, context_len=200, max_new_tokens=20)) <= 180
    assert 0 < max(read) <= 16 * 200
    assert 900 < prompt.conversation.first < 1000


def test_a_prompt_class_that_was_written_for_chatstream_needs_no_change(tokenizer: Any) -> None:
    prompt = ForChatStream()
    prompt.conversation, prompt.message, prompt.tokenizer = (
        Conversation((Turn("Hi", "Hello!", "1"),)),
        "And?",
        tokenizer,
    )
    text = "Be brief.\nGuest: 1+1?\nHost: 2\nGuest: Hi\nHost: Hello!\nGuest: And?\nHost:"
    assert prompt.create_prompt() == text
    assert prompt.encode() == tokenizer(text)["input_ids"]


def test_a_prompt_can_be_talked_to_by_hand() -> None:
    prompt = HumanAndBot()
    prompt.add_requester_msg("Hi")
    prompt.add_responder_msg("Hello!")
    prompt.add_requester_msg("And?")
    prompt.add_responder_msg(None)
    assert prompt.create_prompt() == "<human>: Hi\n<bot>: Hello!\n<human>: And?\n<bot>:"


def test_examples_are_of_a_message_and_its_answer_in_turn() -> None:
    class Unanswered(HumanAndBot):
        def build_initial_prompt(self, chat_prompt: AbstractChatPrompt) -> None:
            chat_prompt.add_requester_msg("Hi")

    with pytest.raises(ValueError, match=r"^build_initial_prompt: the message 'Hi' has no answer"):
        Unanswered()
    prompt = HumanAndBot()
    with pytest.raises(ValueError, match=r"^add_responder_msg: add_requester_msg comes first"):
        prompt.add_responder_msg("Hello!")
    prompt.add_requester_msg("Hi")
    with pytest.raises(ValueError, match=r"^add_requester_msg: the message 'Hi' has no answer"):
        prompt.add_requester_msg("And?")


class WithAnotherLineEnd(HumanAndBot):
    """The model knows no line ends."""

    def get_replacement_when_input(self) -> list[tuple[str, str]]:
        return [("\n", "<NL>")]


@pytest.mark.parametrize("begun", ["Paris", "パリです。\n", "  two\n\nlines ", "It is <|im_start|>"])
def test_an_answer_begun_has_the_ids_of_the_plain_prompt_and_its_own(tokenizer: Any, begun: str) -> None:
    prompt = made(tokenizer, "The capital?", HISTORY, system="Be brief.")
    plain, text = prompt.encode(), prompt.create_prompt()
    prompt.open_answer = begun
    assert prompt.create_prompt() == text
    assert prompt.encode() == plain + tokenizer(begun, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert prompt.get_messages()[-1] == {"role": "assistant", "content": begun}
    assert prompt.encode() == encode_messages(tokenizer, prompt.get_messages(), continue_final=True)


def test_an_answer_begun_is_as_the_templates_own_way_to_continue_where_that_trims_nothing(tokenizer: Any) -> None:
    prompt = made(tokenizer, "The capital?", HISTORY)
    prompt.open_answer = " Paris,"
    ids = tokenizer.apply_chat_template(prompt.get_messages(), continue_final_message=True, tokenize=True)["input_ids"]
    assert prompt.encode() == ids


def test_an_answer_begun_follows_the_text_of_any_class_as_the_model_writes_it(tokenizer: Any) -> None:
    prompt = made(tokenizer, "And?", clazz=WithAnotherLineEnd)
    prompt.open_answer = " One,\ntwo"
    assert tokenizer.decode(prompt.encode()) == "<human>: And?\n<bot>: One,<NL>two"
    assert prompt.get_messages()[-1] == {"role": "assistant", "content": " One,<NL>two"}
    assert prompt.get_contents()[-1] == Content("<bot>", None)


@pytest.mark.parametrize("begun", ["cd", " cd", "d日 "])
def test_an_answer_begun_has_no_space_before_it_that_a_tokenizer_puts_before_texts(begun: str) -> None:
    prompt = made(BYTE_FALLBACK, "ab", clazz=HumanAndBot)
    text = prompt.create_prompt()
    prompt.open_answer = begun
    assert BYTE_FALLBACK.decode(prompt.encode()) == text + begun


def test_an_answer_begun_counts_where_the_context_is_short(tokenizer: Any) -> None:
    prompt = made(tokenizer, "Hello", TURNS, system=SYSTEM)
    prompt.open_answer = "word" * 60
    ids = fit(prompt, context_len=200, max_new_tokens=10)
    assert prompt.conversation.first > 0
    assert len(ids) <= 190
    assert tokenizer.decode(ids).endswith(prompt.open_answer)
    prompt.open_answer *= 10
    with pytest.raises(TooLarge, match=r"^user_input, with the answer so far: \d+ tokens too long\."):
        fit(prompt, context_len=200, max_new_tokens=10)
    prompt.open_answer *= 10
    with pytest.raises(TooLarge, match=r"^user_input, with the answer so far: \d+ characters, at most 3200"):
        fit(prompt, context_len=200, max_new_tokens=10)
