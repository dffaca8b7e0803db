"""The prompt for every model whose tokenizer has a chat template."""

from __future__ import annotations

from typing import Any

from aiochatstream.prompts.base import AbstractChatPrompt


class ChatPrompt(AbstractChatPrompt):
    """Follows the tokenizer's own chat template."""

    def create_prompt(self) -> str:
        """The prompt as text, special tokens included."""
        return str(self._apply(tokenize=False))

    def encode(self) -> list[int]:
        """The template's own token ids. Tokenising its text again could add a second BOS."""
        ids: list[int] = self._apply(tokenize=True)["input_ids"]
        return ids

    def _apply(self, *, tokenize: bool) -> Any:
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                "This model's tokenizer has no chat template. Hand ChatStream a chat_prompt_clazz of your own: "
                "a subclass of AbstractChatPrompt that writes the prompt as the model expects it."
            )
        return self.tokenizer.apply_chat_template(
            self.get_messages(), add_generation_prompt=True, tokenize=tokenize, return_dict=tokenize
        )
