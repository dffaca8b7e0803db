"""The prompts of well-known models, character by character."""

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
from transformers import PreTrainedTokenizerFast

from aiochatstream import AbstractChatPrompt, ChatPrompt, Conversation, Turn, prompts
from aiochatstream.prompts import (
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
from aiochatstream.prompts.presets import PRESETS
from tests.prompts.test_base import made

ONE = (Turn("Hi", "Hello!", "1"),)
TWO = (*ONE, Turn("1+1?", " 2\n", "2", "interrupted"))  # as models begin and end, before what is a stop string

STABILITY = "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。"
WEBLAB = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
DOLLY = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

# for each: no history; after one turn; after two turns, with the system text "Be brief."; the stop strings
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


def written(clazz: type[AbstractChatPrompt], turns: tuple[Turn, ...] = (), message: str = "And?") -> str:
    """The prompt with the system text that the class itself has."""
    prompt = clazz()
    prompt.conversation = Conversation(turns)
    prompt.message = message
    return prompt.create_prompt()


@pytest.mark.parametrize("clazz", GOLDEN)
def test_a_preset_writes_exactly_the_format_of_its_model(clazz: type[AbstractChatPrompt]) -> None:
    first, second, third, stops = GOLDEN[clazz]
    assert written(clazz) == first
    assert written(clazz, ONE) == second
    assert made(None, "And?", TWO, system="Be brief.", clazz=clazz).create_prompt() == third
    assert clazz().get_stop_strs() == stops


def test_every_preset_is_exported_and_has_a_golden_test() -> None:
    assert set(GOLDEN) == set(PRESETS.values())
    assert {clazz.__name__ for clazz in GOLDEN} <= set(prompts.__all__)
    assert len(GOLDEN) == 11


def test_presets_load_neither_torch_nor_transformers() -> None:
    code = """
import sys
class Refuse:
    def find_spec(self, name, *args):
        if name in ("torch", "transformers", "tokenizers"):
            raise AssertionError(name)
sys.meta_path.insert(0, Refuse())
from aiochatstream.prompts import ChatPrompt
print(ChatPrompt.for_model("mosaicml/mpt-7b-chat").__name__)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout == "ChatPromptMosaicmlMptChat\n", ran.stderr


def test_a_system_text_of_none_leaves_out_its_part() -> None:
    for clazz in (ChatPromptStabilityAiJpGptNeoxInstSft, ChatPromptDatabricksDolly):
        assert made(None, "And?", clazz=clazz).create_prompt().startswith("### ")


@pytest.fixture
def adding_tokenizer() -> Any:
    """Of a few words, with a BOS before each text and an EOS after it, both of its own accord."""
    words = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "Hi", "Hello!", "And?"]
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")  # noqa: S106


def test_llama_2_gets_one_bos_a_turn_though_its_tokenizer_adds_one_itself(adding_tokenizer: Any) -> None:
    assert adding_tokenizer("Hi")["input_ids"] == [1, 5, 2]
    assert made(adding_tokenizer, "And?", clazz=ChatPromptMetaLlamaLlama2Chat).encode() == [1, 3, 7, 4]
    ids = made(adding_tokenizer, "And?", ONE, clazz=ChatPromptMetaLlamaLlama2Chat).encode()
    assert " ".join(adding_tokenizer.convert_ids_to_tokens(ids)) == (
        "<s> [INST] Hi [/INST] Hello! </s> <s> [INST] And? [/INST]"
    )


@pytest.mark.parametrize("clazz", GOLDEN)
def test_the_tokenizer_adds_its_special_tokens_where_the_model_card_does(
    clazz: type[AbstractChatPrompt], adding_tokenizer: Any
) -> None:
    without = {
        ChatPromptRinnaJpGptNeoxInstSft,
        ChatPromptLineCorpJpLargeLmInstSft,
        ChatPromptStabilityAiJpGptNeoxInstSft,
        ChatPromptMatsuoLabJpGptNeoxInstSft,
        ChatPromptMetaLlamaLlama2Chat,
    }
    prompt = made(adding_tokenizer, "And?", clazz=clazz)
    text = prompt.create_prompt()
    assert prompt.encode() == adding_tokenizer(text, add_special_tokens=clazz not in without)["input_ids"]


def test_rinnas_newlines_are_told_as_its_tokenizer_knows_them() -> None:
    turns = (Turn("a\nb", "c\n\nd\n", "1"),)
    prompt = made(None, "e\r\nf\n", turns, system="g\nh", clazz=ChatPromptRinnaJpGptNeoxInstSft)
    text = "g<NL>h<NL>ユーザー: a<NL>b<NL>システム: c<NL><NL>d<NL>ユーザー: e<NL>f<NL>システム: "
    assert prompt.create_prompt() == text
    assert prompt.get_replacement_when_output() == [("<NL>", "\n")]


def test_an_input_for_stable_lm_is_part_of_the_message() -> None:
    text = written(ChatPromptStabilityAiJpGptNeoxInstSft, message="Translate.\n\n### 入力: \n猫")
    assert text == f"{STABILITY}\n\n### 指示: \nTranslate.\n\n### 入力: \n猫\n\n### 応答: "


def test_the_stop_string_follows_the_requesters_name() -> None:
    prompt = made(None, "And?", clazz=ChatPromptTogetherRedPajamaINCITEChat)
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


def test_the_initial_prompt_comes_before_the_conversation_and_is_never_cut() -> None:
    assert written(FewShot, ONE) == "Sums.\nQ: 2+2?\nA: 4\nQ: Hi\nA: Hello!\nQ: And?\nA:"
    prompt = FewShot()
    prompt.conversation = Conversation(ONE, first=1)
    prompt.message = "And?"
    assert prompt.create_prompt() == "Sums.\nQ: 2+2?\nA: 4\nQ: And?\nA:"
    assert written(FewShot) == written(FewShot), "examples of one object are another's"


def test_examples_leave_a_presets_own_system_text() -> None:
    assert written(FewShotDolly).startswith(f"{DOLLY}\n\n### Instruction:\n2+2?\n\n### Response:\n4\n\n### End\n\n")


def test_the_initial_prompt_works_with_the_chat_template(tokenizer: Any) -> None:
    prompt = FewShotTemplate()
    prompt.message, prompt.tokenizer = "And?", tokenizer
    messages = [
        {"role": "system", "content": "Sums."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And?"},
    ]
    assert prompt.get_messages() == messages
    assert prompt.encode() == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def test_with_chat_mode_off_only_the_newest_message_is_told(tokenizer: Any) -> None:
    prompt = made(tokenizer, "And?", TWO)
    prompt.set_chat_mode_enabled(False)
    assert prompt.get_messages() == [{"role": "user", "content": "And?"}]
    assert prompt.encode() == made(tokenizer, "And?").encode()
    few_shot = FewShot()
    few_shot.set_chat_mode_enabled(False)
    few_shot.conversation, few_shot.message = prompt.conversation, "And?"
    assert few_shot.create_prompt() == "Sums.\nQ: 2+2?\nA: 4\nQ: And?\nA:"


class Replacing(ChatPrompt):
    def get_replacement_when_input(self) -> list[tuple[str, str]]:
        return [("ab", "b"), ("a", "ab"), ("a", "never"), (".", "!")]


def test_input_replacements_take_the_first_pair_that_fits_and_are_not_replaced_again() -> None:
    assert Replacing().replace_input("aba.b") == "bab!b"
    assert ChatPrompt().replace_input("aba.b") == "aba.b"
    assert made(None, "a", (Turn("ab", "c.", "1"),), clazz=Replacing).get_messages() == [
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c!"},
        {"role": "user", "content": "ab"},
    ]


def test_the_documentation_names_every_preset_and_its_examples_run() -> None:
    text = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `ChatPrompt")}
    assert set(rows) == {clazz.__name__ for clazz in GOLDEN}
    for name, clazz in PRESETS.items():
        assert name.partition("/")[0] in rows[clazz.__name__]
    stand_ins = {
        "ChatStream": SimpleNamespace,
        "model": None,
        "tokenizer": SimpleNamespace(chat_template=None, name_or_path="mosaicml/mpt-7b-chat"),
    }
    made_here: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, stand_ins | {"__name__": "docs"}, made_here)  # noqa: S102
    assert written(made_here["GuestPrompt"], ONE) == "Guest: Hi\nWaiter: Hello!\nGuest: And?\nWaiter:"
    assert written(made_here["NewlinesAsNL"], message="a\nb") == "ユーザー: a<NL>b<NL>システム: "
    assert len(made_here["Capitals"]().get_messages()) == 4


@pytest.mark.parametrize("name", PRESETS)
def test_for_model_knows_a_preset_by_id_and_by_folder_whatever_the_case(name: str) -> None:
    folder = name.rpartition("/")[2]
    copies = [name.upper(), f"/srv/models/{folder}/", f"C:\\models\\{folder}", f"models--{name.replace('/', '--')}"]
    for known in [name, *copies]:
        assert ChatPrompt.for_model(known) is PRESETS[name]
        assert ChatPrompt.for_model(SimpleNamespace(chat_template=None, name_or_path=known)) is PRESETS[name]


def test_for_model_prefers_the_tokenizers_own_chat_template(tokenizer: Any) -> None:
    assert ChatPrompt.for_model(tokenizer) is ChatPrompt
    assert FewShotTemplate.for_model(tokenizer) is FewShotTemplate
    named = SimpleNamespace(chat_template="{{ messages }}", name_or_path="mosaicml/mpt-7b-chat")
    assert ChatPrompt.for_model(named) is ChatPrompt


@pytest.mark.parametrize(
    "name", ["", "/", "gpt2", "mosaicml/mpt-7b", "mosaicml/mpt-7b-chat-x", "xopen_llama_3b", "chat"]
)
def test_for_model_says_what_to_write_where_nothing_fits(name: str) -> None:
    with pytest.raises(ValueError, match=r"^There is no prompt preset .*AbstractChatPrompt.*chat_prompt_clazz\.$"):
        ChatPrompt.for_model(name)
    with pytest.raises(ValueError, match=r"^There is no chat template and no prompt preset .*chat_prompt_clazz\.$"):
        ChatPrompt.for_model(SimpleNamespace(chat_template=None, name_or_path=name))
