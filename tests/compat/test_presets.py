"""Presets with chatstream's methods."""

from __future__ import annotations

import pytest

from aiochatstream import Turn
from aiochatstream.compat import (
    AbstractChatPrompt,
    ChatPrompt,
    ChatPromptDatabricksDolly,
    ChatPromptMatsuoLabJpGptNeoxInstSft,
    ChatPromptMosaicmlMptChat,
    ChatPromptRinnaJapaneseGPTNeoxInst,
    ChatPromptRinnaJpGptNeoxInstSft,
    ChatPromptStabilityAiJpGptNeoxInstSft,
    ChatPromptTogetherRedPajamaINCITEChat,
    presets,
)
from aiochatstream.prompts.presets import PRESETS
from tests.prompts.builders import fill

TURNS = (Turn("Hi", "Hello!", "1"),)


@pytest.mark.parametrize("base", dict.fromkeys(PRESETS.values()), ids=lambda base: base.__name__)
def test_a_preset_writes_the_same_prompt_as_its_base(base: type[AbstractChatPrompt]) -> None:
    prompt = fill(presets.PRESETS[base.__name__](), None, "And?", TURNS)
    expected = fill(base(), None, "And?", TURNS)
    assert prompt.create_prompt() == expected.create_prompt()
    assert prompt.stop_strings() == expected.stop_strings()
    assert prompt.get_messages() == expected.get_messages()
    assert (prompt.get_turn(), prompt.get_requester_last_msg()) == (2, "And?")


@pytest.mark.parametrize(
    ("preset", "prefix"),
    [
        (ChatPromptTogetherRedPajamaINCITEChat, "<human>:"),
        (ChatPromptRinnaJpGptNeoxInstSft, "ユーザー: "),
        (ChatPromptDatabricksDolly, "### Instruction:\n"),
        (ChatPromptMosaicmlMptChat, "<|im_start|>user\n"),
    ],
)
def test_the_start_of_a_user_message_is_that_of_the_format(preset: type[AbstractChatPrompt], prefix: str) -> None:
    prompt = preset()
    prompt.set_prefix_as_stop_str_enabled(True)
    assert prompt.stop_strings() == (prefix, *prompt.get_stop_strs())


def test_for_model_returns_presets_with_the_methods_of_chatstream() -> None:
    assert ChatPrompt.for_model("rinna/japanese-gpt-neox-3.6b-instruction-sft") is ChatPromptRinnaJpGptNeoxInstSft
    assert ChatPromptRinnaJapaneseGPTNeoxInst is ChatPromptRinnaJpGptNeoxInstSft
    assert len(presets.PRESETS) == len({*PRESETS.values()}) == 11


@pytest.mark.parametrize(
    ("preset", "heading"),
    [(ChatPromptStabilityAiJpGptNeoxInstSft, "### 入力: "), (ChatPromptMatsuoLabJpGptNeoxInstSft, "### 入力:")],
)
def test_the_child_messages_of_an_instruction_are_its_input(preset: type[AbstractChatPrompt], heading: str) -> None:
    class Translation(preset):  # type: ignore[valid-type, misc]
        def build_initial_prompt(self, chat_prompt: AbstractChatPrompt) -> None:
            chat_prompt.add_requester_msg("Translate.", child_messages=["猫", "犬"])
            chat_prompt.add_responder_msg("cat, dog")

    prompt = fill(Translation(), None, "And?")
    assert f"\nTranslate.\n\n{heading}\n猫\n\n犬\n\n{prompt.responder}\ncat, dog\n\n" in prompt.create_prompt()
