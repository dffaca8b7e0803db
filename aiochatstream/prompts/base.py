"""How a conversation is told to a model."""

from __future__ import annotations

import copy
import dataclasses
import re
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.prompts.control_tokens import Mark, encode_prompt


class Content(NamedTuple):
    """One message under the name that the model knows its speaker by. ``message`` is None for the open answer."""

    role: str
    message: str | None

    def get_role(self) -> str:
        """chatstream's way to :attr:`role`."""
        return self.role

    def get_message(self) -> str | None:
        """chatstream's way to :attr:`message`."""
        return self.message


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

    system: str = ""
    """What the model is told before the conversation."""

    requester: str = "user"
    """The name of the one who asks."""

    responder: str = "assistant"
    """The name of the one who answers."""

    chat_mode_enabled: bool = True
    """False for models that know single questions only: of the conversation, they are told the newest message."""

    add_special_tokens: bool = True
    """Whether the tokenizer adds its special tokens (a BOS, mostly) to the text."""

    special_tokens_in_text: bool = False
    """True lets the texts of a conversation hold control tokens: ``<|im_end|>`` in a message then ends it. By default
    they are text, and only the prompt class or the chat template writes control tokens."""

    def __init__(self) -> None:
        self.conversation = Conversation()
        self.message = ""
        self.open_answer = ""
        """What the answer already says, as people read it: the model is to go on from there. It comes right after
        :meth:`create_prompt`."""
        self.tokenizer: Any = None
        self._examples: list[tuple[str, str]] = []
        self.build_initial_prompt(self)
        if self.message:
            raise ValueError(f"build_initial_prompt: the message {self.message!r} has no answer.")

    def set_system(self, text: str) -> None:
        """Set :attr:`system`."""
        self.system = text

    def set_requester(self, name: str) -> None:
        """Set :attr:`requester`."""
        self.requester = name

    def set_responder(self, name: str) -> None:
        """Set :attr:`responder`."""
        self.responder = name

    def set_chat_mode_enabled(self, enabled: bool) -> None:
        """Set :attr:`chat_mode_enabled`."""
        self.chat_mode_enabled = enabled

    def build_initial_prompt(self, chat_prompt: AbstractChatPrompt) -> None:  # noqa: B027  a hook that may stay empty
        """Override it to tell the model something before every conversation: with :meth:`set_system` a text, with
        :meth:`add_requester_msg` and :meth:`add_responder_msg` turns that show how to answer. They stay when the
        conversation is cut to fit the context. Called once for each object, by its constructor.

        :param chat_prompt: the object itself.
        """

    def add_requester_msg(self, text: str) -> None:
        """What the user says. Raises ValueError where the message before has no answer."""
        if self.message:
            raise ValueError(f"add_requester_msg: the message {self.message!r} has no answer.")
        self.message = text

    def add_responder_msg(self, text: str | None) -> None:
        """The answer to that; None leaves it open. Raises ValueError where there is no message to answer."""
        if not self.message:
            raise ValueError("add_responder_msg: add_requester_msg comes first, with a message that is not empty.")
        if text is not None:
            self._examples.append((self.message, text))
            self.message = ""

    def get_contents(self, opts: object = None) -> list[Content]:
        """The messages that fit the context, oldest first; the last one is the open answer.

        :param opts: chatstream's; it changes nothing.
        """
        contents = []
        for user, answer in self._past():
            contents += [Content(self.requester, user), Content(self.responder, answer)]
        return [*contents, Content(self.requester, self.replace_input(self.message)), Content(self.responder, None)]

    def get_messages(self) -> list[dict[str, str]]:
        """The same as chat messages: dicts of role (system, user, assistant) and content, the newest last.

        That is the user's, or the :attr:`open_answer` where it already says something.
        """
        messages = [{"role": "system", "content": self.replace_input(self.system)}] if self.system else []
        for user, answer in self._past():
            messages.append({"role": "user", "content": user})
            messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": self.replace_input(self.message)})
        if self.open_answer:
            messages.append({"role": "assistant", "content": self.replace_input(self.open_answer)})
        return messages

    def get_stop_strs(self) -> list[str]:
        """Strings that end the answer and are not shown, for models that go on to write the user's part."""
        return []

    def get_replacement_when_input(self) -> list[tuple[str, str]]:
        """Pairs (from, to): what the model writes otherwise than people do, in all that it is told.

        Of two that begin at the same place, the first of the list holds; what was put in is not replaced again.
        """
        return []

    def get_replacement_when_output(self) -> list[tuple[str, str]]:
        """Pairs (from, to): the way back, for what the model writes."""
        return []

    def replace_input(self, text: str) -> str:
        """``text`` with the replacements of :meth:`get_replacement_when_input`."""
        pairs = self.get_replacement_when_input()
        if not pairs:
            return text
        new = dict(reversed(pairs))  # the first of equals is to hold
        return re.sub("|".join(re.escape(old) for old, _ in pairs), lambda match: new[match[0]], text)

    @abstractmethod
    def create_prompt(self) -> str:
        """The text up to the open answer."""

    def check(self) -> None:  # noqa: B027
        """Raise ValueError if the class does not go with its tokenizer. Called when the model is loaded."""

    def encode(self) -> list[int]:
        """The token ids of all that the model is to continue.

        See :attr:`add_special_tokens` and :attr:`special_tokens_in_text`.
        """
        return self._encode(add_special_tokens=self.add_special_tokens)

    def _encode(self, *, add_special_tokens: bool) -> list[int]:
        return encode_prompt(
            self.tokenizer,
            lambda mark: self._marked(mark).create_prompt(),
            self.replace_input(self.open_answer),
            add_special_tokens=add_special_tokens,
            special_tokens_in_text=self.special_tokens_in_text,
        )

    def _marked(self, mark: Mark) -> AbstractChatPrompt:
        """Return a copy whose texts are marked, except for what :meth:`replace_input` replaces."""
        pairs = self.get_replacement_when_input()
        replaced = re.compile("|".join(re.escape(old) for old, _ in pairs)) if pairs else None

        def marked(text: str) -> str:
            if replaced is None:
                return str(mark(text))
            kept = [*replaced.findall(text), ""]
            return "".join(f"{mark(part)}{old}" for part, old in zip(replaced.split(text), kept, strict=True))

        copied = copy.copy(self)
        copied.message = marked(self.message)
        if (system := marked(self.system)) != self.system:  # which may be a property without a setter
            copied.system = system
        copied._examples = [(marked(user), marked(answer)) for user, answer in self._examples]
        first = self.conversation.first
        turns = [
            turn if at < first else dataclasses.replace(turn, user=marked(turn.user), answer=marked(turn.answer))
            for at, turn in enumerate(self.conversation.turns)
        ]
        copied.conversation = dataclasses.replace(self.conversation, turns=tuple(turns))
        return copied

    def _past(self) -> list[tuple[str, str]]:
        """The examples and the turns that the model is told, as (user message, answer).

        Answers get the input replacements, too: the history holds them as people read them.
        """
        turns = self.conversation.turns[self.conversation.first :] if self.chat_mode_enabled else ()
        past = [*self._examples, *((turn.user, turn.answer) for turn in turns)]
        return [(self.replace_input(user), self.replace_input(answer)) for user, answer in past]
