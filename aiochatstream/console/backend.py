"""Interface of the console to a model or a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator

from aiochatstream.conversations.export import ExportedConversation
from aiochatstream.params import ParamOverrides
from aiochatstream.runtime.events import Event


class Backend(ABC):
    """A conversation with a model. Refusals and failures raise ChatStreamError."""

    name: str
    """Display name."""

    @abstractmethod
    def answer(self, message: str | None, params: ParamOverrides) -> AsyncGenerator[Event, None]:
        """Yield the events of the answer to ``message``; the last one is Ended or Failed.

        :param message: None answers the last message again.
        """

    @abstractmethod
    async def stop(self) -> bool:
        """Stop the running answer and keep its text; return False if there is none."""

    @abstractmethod
    async def clear(self) -> bool:
        """Delete the conversation; return False if it was empty."""

    @abstractmethod
    def check(self, params: ParamOverrides) -> None:
        """Raise ChatStreamError if ``params`` are known to be invalid."""

    @abstractmethod
    async def get_system(self) -> str:
        """Return the system prompt; empty for the model's default."""

    @abstractmethod
    async def set_system(self, text: str) -> None:
        """Set the system prompt of the next answers; empty for the model's default."""

    @abstractmethod
    async def save(self) -> ExportedConversation:
        """Return the conversation."""

    @abstractmethod
    async def load(self, saved: ExportedConversation) -> None:
        """Replace the conversation."""
