"""How a conversation is told to a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from aiochatstream.conversation import Conversation


class Content(NamedTuple):
    """One message under the name that the model knows its speaker by. ``message`` is None for the open answer."""

    role: str
    message: str | None


class AbstractChatPrompt(ABC):
    """Writes a conversation down as one model expects it. For models without a chat template, subclass it::

        class ChatPrompt(AbstractChatPrompt):
            def __init__(self) -> None:
                super().__init__()
                self.set_requester("<human>")
                self.set_responder("<bot>")

            def create_prompt(self) -> str:
                lines = [f"{c.role}:" if c.message is None else f"{c.role}: {c.message}" for c in self.get_contents()]
                return "\\n".join(lines)

            def get_stop_strs(self) -> list[str]:
                return ["<human>:"]

    The class is handed to ChatStream, which makes one object a turn and gives it the conversation, the newest user
    message and the model's tokenizer (None with an engine that has none).
    """

    def __init__(self) -> None:
        self.system = ""
        self.requester = "user"
        self.responder = "assistant"
        self.conversation = Conversation()
        self.message = ""
        self.tokenizer: Any = None

    def set_system(self, text: str) -> None:
        """What the model is told before the conversation."""
        self.system = text

    def set_requester(self, name: str) -> None:
        """The name of the one who asks."""
        self.requester = name

    def set_responder(self, name: str) -> None:
        """The name of the one who answers."""
        self.responder = name

    def get_contents(self) -> list[Content]:
        """The messages that fit the context, oldest first; the last one is the open answer."""
        contents = []
        for turn in self.conversation.turns[self.conversation.first :]:
            contents += [Content(self.requester, turn.user), Content(self.responder, turn.answer)]
        return [*contents, Content(self.requester, self.message), Content(self.responder, None)]

    def get_messages(self) -> list[dict[str, str]]:
        """The same as chat messages: dicts of role (system, user, assistant) and content, the newest last."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.conversation.turns[self.conversation.first :]:
            messages.append({"role": "user", "content": turn.user})
            messages.append({"role": "assistant", "content": turn.answer})
        return [*messages, {"role": "user", "content": self.message}]

    def get_stop_strs(self) -> list[str]:
        """Strings that end the answer and are not shown, for models that go on to write the user's part."""
        return []

    @abstractmethod
    def create_prompt(self) -> str:
        """The text that the model is to continue."""

    def encode(self) -> list[int]:
        """The token ids of :meth:`create_prompt`, with the special tokens that the tokenizer itself adds."""
        ids: list[int] = self.tokenizer(self.create_prompt())["input_ids"]
        return ids
