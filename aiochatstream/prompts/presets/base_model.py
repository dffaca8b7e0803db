"""Base models, which go on with any text and know no chat."""

from __future__ import annotations

from aiochatstream.prompts.base import AbstractChatPrompt


class BaseModelPrompt(AbstractChatPrompt):
    """The text so far, without roles: the model goes on where it ends."""

    def create_prompt(self) -> str:
        """The system text and all messages, one right after the other."""
        return self.replace_input(self.system) + "".join(message or "" for _, message in self.get_contents())


class ChatPromptCyberAgentOpenCalm(BaseModelPrompt):
    """OpenCALM by CyberAgent."""


class ChatPromptStockmarkGptNeoxJp(BaseModelPrompt):
    """gpt-neox-japanese-1.4b by Stockmark."""
