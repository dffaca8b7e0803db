"""Base models, which continue any text and are not trained for chats."""

from __future__ import annotations

from aiochatstream.prompts.base import AbstractChatPrompt


class BaseModelPrompt(AbstractChatPrompt):
    """The conversation as text without roles, for the model to continue."""

    def create_prompt(self) -> str:
        """Return the system prompt and all messages, joined without separators."""
        return self.replace_input(self.system) + "".join(message or "" for _, message in self.get_contents())


class ChatPromptCyberAgentOpenCalm(BaseModelPrompt):
    """OpenCALM by CyberAgent."""


class ChatPromptStockmarkGptNeoxJp(BaseModelPrompt):
    """gpt-neox-japanese-1.4b by Stockmark."""
