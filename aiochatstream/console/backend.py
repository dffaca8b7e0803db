"""Whom the console talks to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator

from aiochatstream.conversations.export import ExportedConversation
from aiochatstream.params import ParamOverrides
from aiochatstream.runtime.events import Event


class Backend(ABC):
    """One conversation with a model. Whatever is refused or fails raises ChatStreamError with a sentence."""

    name: str
    """What it is, for people."""

    @abstractmethod
    def answer(self, message: str | None, params: ParamOverrides) -> AsyncGenerator[Event, None]:
        """What happens while ``message`` is answered (None: the last one again). Ended or Failed comes last."""

    @abstractmethod
    async def stop(self) -> bool:
        """Have the running answer end, in order and with what it says so far; tell whether there was one."""

    @abstractmethod
    async def clear(self) -> bool:
        """Forget the conversation; tell whether there was one."""

    @abstractmethod
    def check(self, params: ParamOverrides) -> None:
        """Raises ChatStreamError where it is known now that answers cannot have ``params``."""

    @abstractmethod
    async def get_system(self) -> str:
        """The system prompt that was set; empty where it is the model's own."""

    @abstractmethod
    async def set_system(self, text: str) -> None:
        """What the model is told first, from the next answer on; empty for the model's own."""

    @abstractmethod
    async def save(self) -> ExportedConversation:
        """The conversation as it is."""

    @abstractmethod
    async def load(self, saved: ExportedConversation) -> None:
        """Go on with another conversation."""
