"""Prompt class of models that have no format of chats."""

from __future__ import annotations

from typing import NoReturn

from aiochatstream.errors import BadRequest
from aiochatstream.prompts.base import AbstractChatPrompt


class CompletionsOnly(AbstractChatPrompt):
    """Prompt class that refuses all chats: the model only completes texts."""

    def create_prompt(self) -> NoReturn:
        """Raise :class:`~aiochatstream.errors.BadRequest`."""
        self.refuse()

    @staticmethod
    def refuse() -> NoReturn:
        """Raise :class:`~aiochatstream.errors.BadRequest`, which explains the remedy."""
        raise BadRequest(
            "This model has no chat template: only /v1/completions is available, unless the server is started with "
            "--prompt NAME or --chat-template FILE."
        )
