"""Prompts of the presets, character by character."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from aiochatstream import AbstractChatPrompt, ChatPrompt, Conversation, Turn, compat
from aiochatstream.prompts.presets import (
    PRESETS,
    ChatPromptCyberAgentOpenCalm,
    ChatPromptDatabricksDolly,
    ChatPromptLineCorpJpLargeLmInstSft,
    ChatPromptMatsuoLabJpGptNeoxInstSft,
    ChatPromptMetaLlamaLlama2Chat,
    ChatPromptMosaicmlMptChat,
    ChatPromptOpenlmrOpenLlama,
    ChatPromptRinnaJpGptNeoxInstSft,
    ChatPromptStabilityAiJpGptNeoxInstSft,
    ChatPromptStockmarkGptNeoxJp,
    ChatPromptTogetherRedPajamaINCITEChat,
)
from tests.prompts.builders import chat_prompt, fill, template_ids

ONE = (Turn("Hi", "Hello!", "1"),)
TWO = (*ONE, Turn("1+1?", " 2\n", "2", "interrupted"))  # whitespace as models write it before a stop string

STABILITY = "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。"
WEBLAB = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
DOLLY = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

# prompts without history, after one turn, and after two turns with the system prompt "Be brief."; stop strings
GOLDEN: dict[type[AbstractChatPrompt], tuple[str, str, str, list[str]]] = {
    ChatPromptTogetherRedPajamaINCITEChat: (
        "<human>: And?\n<bot>:",
        "<human>: Hi\n<bot>: Hello!\n<human>: And?\n<bot>:",
        "Be brief.\n<human>: Hi\n<bot>: Hello!\n<human>: 1+1?\n<bot>: 2\n<human>: And?\n<bot>:",
        ["<human>:", "<|endoftext|>"],
    ),
    ChatPromptMosaicmlMptChat: (
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n 2\n<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
        ["<|im_end|>", "<|endoftext|>"],
    ),
    ChatPromptRinnaJpGptNeoxInstSft: (
        "ユーザー: And?<NL>システム: ",
        "ユーザー: Hi<NL>システム: Hello!<NL>ユーザー: And?<NL>システム: ",
        "Be brief.<NL>ユーザー: Hi<NL>システム: Hello!<NL>"
        "ユーザー: 1+1?<NL>システム: 2<NL>ユーザー: And?<NL>システム: ",
        ["ユーザー: "],
    ),
    ChatPromptLineCorpJpLargeLmInstSft: (
        "ユーザー: And?\nシステム: ",
        "ユーザー: Hi\nシステム: Hello!\nユーザー: And?\nシステム: ",
        "Be brief.\nユーザー: Hi\nシステム: Hello!\nユーザー: 1+1?\nシステム: 2\nユーザー: And?\nシステム: ",
        ["ユーザー: "],
    ),
    ChatPromptStabilityAiJpGptNeoxInstSft: (
        f"{STABILITY}\n\n### 指示: \nAnd?\n\n### 応答: ",
        f"{STABILITY}\n\n### 指示: \nHi\n\n### 応答: \nHello!\n\n### 指示: \nAnd?\n\n### 応答: ",
        "Be brief.\n\n### 指示: \nHi\n\n### 応答: \nHello!\n\n### 指示: \n1+1?\n\n### 応答: \n2\n\n"
        "### 指示: \nAnd?\n\n### 応答: ",
        ["### 指示: "],
    ),
    ChatPromptMatsuoLabJpGptNeoxInstSft: (
        f"{WEBLAB}\n\n### 指示:\nAnd?\n\n### 応答:",
        f"{WEBLAB}\n\n### 指示:\nAnd?\n\n### 応答:",
        "Be brief.\n\n### 指示:\nAnd?\n\n### 応答:",
        ["### 指示:", "Q:"],
    ),
    ChatPromptDatabricksDolly: (
        f"{DOLLY}\n\n### Instruction:\nAnd?\n\n### Response:\n",
        f"{DOLLY}\n\n### Instruction:\nHi\n\n### Response:\nHello!\n\n### End\n\n"
        "### Instruction:\nAnd?\n\n### Response:\n",
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello!\n\n### End\n\n"
        "### Instruction:\n1+1?\n\n### Response:\n2\n\n### End\n\n### Instruction:\nAnd?\n\n### Response:\n",
        ["### Instruction:\n", "### End"],
    ),
    ChatPromptOpenlmrOpenLlama: (
        "Q: And?\nA:",
        "Q: Hi\nA: Hello!\nQ: And?\nA:",
        "Be brief.\nQ: Hi\nA: Hello!\nQ: 1+1?\nA: 2\nQ: And?\nA:",
        ["\nQ:", "\nB:", "\nC:"],
    ),
    ChatPromptMetaLlamaLlama2Chat: (
        "<s>[INST] And? [/INST]",
        "<s>[INST] Hi [/INST] Hello! </s><s>[INST] And? [/INST]",
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] 1+1? [/INST] 2 </s>"
        "<s>[INST] And? [/INST]",
        [],
    ),
    ChatPromptCyberAgentOpenCalm: ("And?", "HiHello!And?", "Be brief.HiHello!1+1? 2\nAnd?", []),
    ChatPromptStockmarkGptNeoxJp: ("And?", "HiHello!And?", "Be brief.HiHello!1+1? 2\nAnd?", []),
}


def text_of(clazz: type[AbstractChatPrompt], turns: tuple[Turn, ...] = (), message: str = "And?") -> str:
    return fill(clazz(), None, message, turns).create_prompt()


@pytest.mark.parametrize("clazz", GOLDEN)
def test_a_preset_writes_the_format_of_its_model(clazz: type[AbstractChatPrompt]) -> None:
    first, second, third, stops = GOLDEN[clazz]
    assert text_of(clazz) == first
    assert text_of(clazz, ONE) == second
    assert fill(clazz(), None, "And?", TWO, system="Be brief.").create_prompt() == third
    assert clazz().get_stop_strs() == stops


def test_every_preset_is_exported_and_tested() -> None:
    assert set(GOLDEN) == set(PRESETS.values())
    assert {clazz.__name__ for clazz in GOLDEN} <= set(compat.__all__)
    assert len(GOLDEN) == 11


def test_presets_load_neither_torch_nor_transformers() -> None:
    code = """
import sys
class Refusing:
    def find_spec(self, name, *args):
        if name in ("torch", "transformers", "tokenizers"):
            raise AssertionError(name)
sys.meta_path.insert(0, Refusing())
from aiochatstream.prompts import ChatPrompt
print(ChatPrompt.for_model("mosaicml/mpt-7b-chat").__name__)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout == "ChatPromptMosaicmlMptChat\n", ran.stderr


def test_an_empty_system_prompt_is_omitted() -> None:
    for clazz in (ChatPromptStabilityAiJpGptNeoxInstSft, ChatPromptDatabricksDolly):
        assert fill(clazz(), None, "And?", system="").create_prompt().startswith("### ")


@pytest.fixture
def adding_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of a few words that adds a BOS and an EOS to each text."""
    words = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "Hi", "Hello!", "And?"]
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")  # noqa: S106


def test_llama_2_has_one_bos_per_turn(adding_tokenizer: PreTrainedTokenizerFast) -> None:
    assert adding_tokenizer("Hi")["input_ids"] == [1, 5, 2]
    assert fill(ChatPromptMetaLlamaLlama2Chat(), adding_tokenizer, "And?").encode() == [1, 3, 7, 4]
    ids = fill(ChatPromptMetaLlamaLlama2Chat(), adding_tokenizer, "And?", ONE).encode()
    assert " ".join(adding_tokenizer.convert_ids_to_tokens(ids)) == (
        "<s> [INST] Hi [/INST] Hello! </s> <s> [INST] And? [/INST]"
    )


@pytest.mark.parametrize("clazz", GOLDEN)
def test_special_tokens_are_added_as_on_the_model_card(
    clazz: type[AbstractChatPrompt], adding_tokenizer: PreTrainedTokenizerFast
) -> None:
    without = {
        ChatPromptRinnaJpGptNeoxInstSft,
        ChatPromptLineCorpJpLargeLmInstSft,
        ChatPromptStabilityAiJpGptNeoxInstSft,
        ChatPromptMatsuoLabJpGptNeoxInstSft,
        ChatPromptMetaLlamaLlama2Chat,
    }
    prompt = fill(clazz(), adding_tokenizer, "And?", system="")
    text = prompt.create_prompt()
    assert prompt.encode() == adding_tokenizer(text, add_special_tokens=clazz not in without)["input_ids"]


def test_rinnas_newlines_are_replaced() -> None:
    turns = (Turn("a\nb", "c\n\nd\n", "1"),)
    prompt = fill(ChatPromptRinnaJpGptNeoxInstSft(), None, "e\r\nf\n", turns, system="g\nh")
    text = "g<NL>h<NL>ユーザー: a<NL>b<NL>システム: c<NL><NL>d<NL>ユーザー: e<NL>f<NL>システム: "
    assert prompt.create_prompt() == text
    assert prompt.get_replacement_when_output() == [("<NL>", "\n")]


def test_a_message_to_stable_lm_may_contain_an_input() -> None:
    text = text_of(ChatPromptStabilityAiJpGptNeoxInstSft, message="Translate.\n\n### 入力: \n猫")
    assert text == f"{STABILITY}\n\n### 指示: \nTranslate.\n\n### 入力: \n猫\n\n### 応答: "


def test_the_stop_string_follows_the_requesters_name() -> None:
    prompt = fill(ChatPromptTogetherRedPajamaINCITEChat(), None, "And?")
    prompt.set_requester("<guest>")
    assert prompt.create_prompt() == "<guest>: And?\n<bot>:"
    assert prompt.get_stop_strs() == ["<guest>:", "<|endoftext|>"]


class FewShot(ChatPromptOpenlmrOpenLlama):
    def build_initial_prompt(self, chat_prompt: AbstractChatPrompt) -> None:
        self.set_system("Sums.")
        self.add_requester_msg("2+2?")
        self.add_responder_msg("4")


class FewShotDolly(ChatPromptDatabricksDolly):
    def build_initial_prompt(self, chat_prompt: AbstractChatPrompt) -> None:
        self.add_requester_msg("2+2?")
        self.add_responder_msg("4")


class FewShotTemplate(ChatPrompt):
    def build_initial_prompt(self, chat_prompt: AbstractChatPrompt) -> None:
        self.set_system("Sums.")
        self.add_requester_msg("2+2?")
        self.add_responder_msg("4")


def test_the_initial_prompt_precedes_the_conversation_and_is_never_dropped() -> None:
    assert text_of(FewShot, ONE) == "Sums.\nQ: 2+2?\nA: 4\nQ: Hi\nA: Hello!\nQ: And?\nA:"
    prompt = FewShot()
    prompt.conversation = Conversation(ONE, first=1)
    prompt.message = "And?"
    assert prompt.create_prompt() == "Sums.\nQ: 2+2?\nA: 4\nQ: And?\nA:"
    assert text_of(FewShot) == text_of(FewShot), "objects share their examples"


def test_examples_keep_the_system_prompt_of_the_preset() -> None:
    assert text_of(FewShotDolly).startswith(f"{DOLLY}\n\n### Instruction:\n2+2?\n\n### Response:\n4\n\n### End\n\n")


def test_a_chat_template_renders_the_initial_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = FewShotTemplate()
    prompt.message, prompt.tokenizer = "And?", tokenizer
    messages = [
        {"role": "system", "content": "Sums."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And?"},
    ]
    assert prompt.get_messages() == messages
    assert prompt.encode() == template_ids(tokenizer, messages)


def test_without_chat_mode_the_prompt_contains_only_the_newest_message(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = chat_prompt(tokenizer, "And?", TWO)
    prompt.set_chat_mode_enabled(False)
    assert prompt.get_messages() == [{"role": "user", "content": "And?"}]
    assert prompt.encode() == chat_prompt(tokenizer, "And?").encode()
    few_shot = FewShot()
    few_shot.set_chat_mode_enabled(False)
    few_shot.conversation, few_shot.message = prompt.conversation, "And?"
    assert few_shot.create_prompt() == "Sums.\nQ: 2+2?\nA: 4\nQ: And?\nA:"


class Replacing(ChatPrompt):
    def get_replacement_when_input(self) -> list[tuple[str, str]]:
        return [("ab", "b"), ("a", "ab"), ("a", "never"), (".", "!")]


def test_the_first_matching_input_replacement_applies_once() -> None:
    assert Replacing().replace_input("aba.b") == "bab!b"
    assert ChatPrompt().replace_input("aba.b") == "aba.b"
    assert fill(Replacing(), None, "a", (Turn("ab", "c.", "1"),)).get_messages() == [
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c!"},
        {"role": "user", "content": "ab"},
    ]


def test_the_documentation_lists_every_preset_and_its_examples_run() -> None:
    text = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `ChatPrompt")}
    assert set(rows) == {clazz.__name__ for clazz in GOLDEN}
    for name, clazz in PRESETS.items():
        assert name.partition("/")[0] in rows[clazz.__name__]
    fakes = {
        "ChatStream": SimpleNamespace,
        "model": None,
        "tokenizer": SimpleNamespace(chat_template=None, name_or_path="mosaicml/mpt-7b-chat"),
    }
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, fakes | {"__name__": "docs"}, names)  # noqa: S102
    assert text_of(names["GuestPrompt"], ONE) == "Guest: Hi\nWaiter: Hello!\nGuest: And?\nWaiter:"
    assert text_of(names["NewlinesAsNL"], message="a\nb") == "ユーザー: a<NL>b<NL>システム: "
    assert len(names["Capitals"]().get_messages()) == 4


@pytest.mark.parametrize("name", PRESETS)
def test_for_model_finds_a_preset_by_id_and_by_folder_ignoring_case(name: str) -> None:
    folder = name.rpartition("/")[2]
    copies = [name.upper(), f"/srv/models/{folder}/", f"C:\\models\\{folder}", f"models--{name.replace('/', '--')}"]
    for path in [name, *copies]:
        assert ChatPrompt.for_model(path) is PRESETS[name]
        assert ChatPrompt.for_model(SimpleNamespace(chat_template=None, name_or_path=path)) is PRESETS[name]


def test_for_model_prefers_the_tokenizers_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    assert ChatPrompt.for_model(tokenizer) is ChatPrompt
    assert FewShotTemplate.for_model(tokenizer) is FewShotTemplate
    named = SimpleNamespace(chat_template="{{ messages }}", name_or_path="mosaicml/mpt-7b-chat")
    assert ChatPrompt.for_model(named) is ChatPrompt


@pytest.mark.parametrize(
    "name", ["", "/", "gpt2", "mosaicml/mpt-7b", "mosaicml/mpt-7b-chat-x", "xopen_llama_3b", "chat"]
)
def test_an_error_of_for_model_names_chat_prompt_clazz(name: str) -> None:
    with pytest.raises(ValueError, match=r"^No prompt preset .*chat_prompt_clazz.*AbstractChatPrompt"):
        ChatPrompt.for_model(name)
    with pytest.raises(ValueError, match=r"^No chat template and no prompt preset .*chat_prompt_clazz"):
        ChatPrompt.for_model(SimpleNamespace(chat_template=None, name_or_path=name))
