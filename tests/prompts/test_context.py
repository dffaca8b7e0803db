"""Fitting prompts to the context."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import groupby, pairwise

import pytest
from transformers import PreTrainedTokenizerBase

from aiochatstream import ChatPrompt, Conversation, Turn
from aiochatstream.errors import TooLarge
from aiochatstream.prompts import fit
from tests.prompts.builders import chat_prompt, fill
from tests.prompts.templates import with_template

TURNS = tuple(Turn(f"This is question number {n} of many.", f"And this is answer {n}.", str(n)) for n in range(12))
SYSTEM = "You are a lighthouse keeper."


class CountingPrompt(ChatPrompt):
    """Counts how often it is tokenised."""

    encoded = 0

    def encode(self) -> list[int]:
        self.encoded += 1
        return super().encode()


def test_a_prompt_that_just_fits_keeps_all_turns(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = chat_prompt(tokenizer, "Hello", TURNS, system=SYSTEM)
    ids = prompt.encode()
    assert fit(prompt, context_len=len(ids) + 10, answer_tokens=10) == ids
    assert prompt.conversation.first == 0


def test_whole_old_turns_are_dropped_to_three_quarters_of_the_available_tokens(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    prompt = chat_prompt(tokenizer, "Hello", TURNS, system=SYSTEM)
    room = len(prompt.encode()) - 1
    ids = fit(prompt, context_len=room + 10, answer_tokens=10)
    first = prompt.conversation.first
    assert prompt.conversation == Conversation(TURNS, number=12, first=first)
    assert ids == chat_prompt(tokenizer, "Hello", TURNS[first:], system=SYSTEM).encode()
    assert len(ids) <= 0.75 * room
    with_one_more_turn = chat_prompt(tokenizer, "Hello", TURNS[first - 1 :], system=SYSTEM).encode()
    assert len(with_one_more_turn) > 0.75 * room, "a turn was dropped that fits"


def test_the_system_message_and_the_start_of_the_template_remain(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = chat_prompt(tokenizer, "Hello", TURNS, system=SYSTEM)
    start = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nThis is question number "
    text = tokenizer.decode(fit(prompt, context_len=200, answer_tokens=10))
    assert prompt.conversation.first > 0
    assert text.startswith(f"{start}{prompt.conversation.first} of many.")


def test_the_prefix_is_stable_for_several_turns_after_turns_are_dropped(tokenizer: PreTrainedTokenizerBase) -> None:
    conversation = Conversation()
    prompts: list[tuple[int, list[int]]] = []
    for number in range(40):
        prompt = chat_prompt(tokenizer, f"Question {number:02}: tell me of it.", system=SYSTEM)
        prompt.conversation = conversation.begin(str(number))
        ids = fit(prompt, context_len=400, answer_tokens=50)
        prompts.append((prompt.conversation.first, ids))
        conversation = prompt.conversation.with_turn(Turn(prompt.message, f"Answer {number:02}.", str(number)))
    stretches = [list(stretch) for _, stretch in groupby(prompts, key=lambda prompt: prompt[0])]
    assert len(stretches) > 2
    for stretch in stretches[:-1]:
        assert len(stretch) >= 3
    for stretch in stretches:
        for (_, before), (_, after) in pairwise(stretch):
            assert after[: len(before)] == before


@pytest.mark.parametrize("turns", [(), TURNS])
def test_an_error_reports_the_excess_tokens_of_the_newest_message(
    tokenizer: PreTrainedTokenizerBase, turns: tuple[Turn, ...]
) -> None:
    def fit_words(words: int) -> list[int]:
        return fit(chat_prompt(tokenizer, "word" + " word" * (words - 1), turns), context_len=100, answer_tokens=20)

    with pytest.raises(TooLarge, match=r"^user_input: \d+ tokens too long\. .* 80 of the 100 tokens") as error:
        fit_words(200)
    match = re.search(r"(\d+) tokens too long", error.value.detail)
    assert match is not None
    words = 200 - int(match[1])
    assert len(fit_words(words)) == 80
    with pytest.raises(TooLarge, match=r"^user_input: 1 tokens too long\."):
        fit_words(words + 1)


def test_a_message_with_too_many_characters_is_refused_without_tokenising_it(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    limit = 16 * 100
    tokenised = fill(CountingPrompt(), tokenizer, "x" * limit)
    with pytest.raises(TooLarge, match="tokens too long"):
        fit(tokenised, context_len=100, answer_tokens=20)
    assert tokenised.encoded > 0
    refused = fill(CountingPrompt(), tokenizer, "x" * (limit + 1))
    with pytest.raises(TooLarge, match=rf"^user_input: must have at most {limit} characters, not {limit + 1}\.$"):
        fit(refused, context_len=100, answer_tokens=20)
    assert refused.encoded == 0


def test_only_the_end_of_a_long_history_is_tokenised(tokenizer: PreTrainedTokenizerBase) -> None:
    lengths = []

    class Measured(ChatPrompt):
        def encode(self) -> list[int]:
            turns = self.conversation.turns[self.conversation.first :]
            lengths.append(sum(len(turn.user + turn.answer) for turn in turns))
            return super().encode()

    prompt = fill(Measured(), tokenizer, "And?", tuple(Turn("x" * 40, "y" * 40, str(n)) for n in range(1000)))
    assert len(fit(prompt, context_len=200, answer_tokens=20)) <= 180
    assert 0 < max(lengths) <= 16 * 200
    assert 900 < prompt.conversation.first < 1000


def test_an_open_answer_counts(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = chat_prompt(tokenizer, "Hello", TURNS, system=SYSTEM)
    prompt.open_answer = "word" * 60
    ids = fit(prompt, context_len=200, answer_tokens=10)
    assert prompt.conversation.first > 0
    assert len(ids) <= 190
    assert tokenizer.decode(ids).endswith(prompt.open_answer)
    assert len(fit(prompt, context_len=len(ids) + 5, answer_tokens=50, min_answer_tokens=5)) <= len(ids)
    prompt.open_answer *= 10
    with pytest.raises(TooLarge, match=r"^user_input, with the answer so far: \d+ tokens too long\."):
        fit(prompt, context_len=200, answer_tokens=10)
    prompt.open_answer *= 10
    with pytest.raises(TooLarge, match=r"^user_input, with the answer so far: must have at most 3200 characters, not"):
        fit(prompt, context_len=200, answer_tokens=10)


def test_thoughts_count_if_the_template_reads_them(tokenizer: PreTrainedTokenizerBase) -> None:
    thoughtful = tuple(replace(turn, thinking="Well. " * 40) for turn in TURNS)
    template = "{% for m in messages %}{{ m.content }}{{ m.reasoning_content }}\n{% endfor %}"
    reading = chat_prompt(with_template(template, tokenizer), "Hello", thoughtful)
    ids = fit(reading, context_len=600, answer_tokens=10)
    assert 0 < reading.conversation.first < len(TURNS)
    assert ids == reading.encode()
    assert len(ids) <= 590
    plain = chat_prompt(tokenizer, "Hello", thoughtful)
    fit(plain, context_len=600, answer_tokens=10)
    assert plain.conversation.first == 0
    fit(reading, context_len=100, answer_tokens=10)
    assert reading.conversation.first >= len(TURNS) - 100 * 16 // 240, "characters beyond the limit were encoded"
