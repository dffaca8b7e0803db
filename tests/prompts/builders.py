"""Prompts for the tests."""

from __future__ import annotations

from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from aiochatstream import AbstractChatPrompt, ChatPrompt, Conversation, Turn

PromptType = TypeVar("PromptType", bound=AbstractChatPrompt)

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


def fill(
    prompt: PromptType,
    tokenizer: PreTrainedTokenizerBase | None,
    message: str,
    turns: tuple[Turn, ...] = (),
    *,
    system: str | None = None,
) -> PromptType:
    """Set the contents of ``prompt``; a system prompt of None keeps that of its class."""
    if system is not None:
        prompt.set_system(system)
    prompt.conversation = Conversation(turns, number=len(turns))
    prompt.message = message
    prompt.tokenizer = tokenizer
    return prompt


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase | None, message: str, turns: tuple[Turn, ...] = (), *, system: str = ""
) -> ChatPrompt:
    return fill(ChatPrompt(), tokenizer, message, turns, system=system)


def template_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    """Return the token ids of transformers' own rendering of the chat template."""
    options = options or {"add_generation_prompt": True}
    ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, **options)["input_ids"]
    return ids
