"""Base class of prompts: a conversation written in the format that a model expects."""

from __future__ import annotations

import copy
import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

from aiochatstream.conversations.conversation import Conversation, Turn
from aiochatstream.prompts.control_tokens import Mark, encode_prompt


class Content(NamedTuple):
    """A message of a prompt.

    role: name of the speaker in the model's format.
    message: None for the answer to generate.
    """

    role: str
    message: str | None

    def get_role(self) -> str:
        """Return :attr:`role`, as in chatstream."""
        return self.role

    def get_message(self) -> str | None:
        """Return :attr:`message`, as in chatstream."""
        return self.message


class AbstractChatPrompt(ABC):
    """Base class of prompts. Subclass it for a model whose tokenizer has no chat template::

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

    Pass the class as ChatStream's ``chat_prompt_clazz``. Each turn has its own object, with the conversation,
    the new user message and the model's tokenizer (None if the engine has none).
    """

    system: str = ""
    """System prompt; empty for none."""

    requester: str = "user"
    """Name of the user in the prompt."""

    responder: str = "assistant"
    """Name of the model in the prompt."""

    chat_mode_enabled: bool = True
    """False for single-turn models: the prompt contains only the newest message of the conversation."""

    add_special_tokens: bool = True
    """True if the tokenizer adds its special tokens (usually a BOS) to the text."""

    special_tokens_in_text: bool = False
    """True allows control tokens in the texts of a conversation: ``<|im_end|>`` in a message then ends it. By default
    such texts are encoded as plain text, and only the prompt class or the chat template writes control tokens."""

    def __init__(self) -> None:
        self.conversation = Conversation()
        self.message = ""
        self.open_answer = ""
        """Text of an answer to continue, without the input replacements; follows :meth:`create_prompt` directly."""
        self.open_thinking = ""
        """Thoughts before :attr:`open_answer`."""
        self.tokenizer: Any = None
        self.template_kwargs: dict[str, Any] = {}
        """Values of variables of the chat template, for classes that use it."""
        self._examples: list[tuple[str, str]] = []
        self._add_examples()

    def _add_examples(self) -> None:
        """Call :meth:`build_initial_prompt`. Raise ValueError if its last message has no answer."""
        self.build_initial_prompt(self)
        if self.message:
            raise ValueError(f"build_initial_prompt: the message {self.message!r} has no answer.")

    def set_system(self, text: str) -> None:
        """Set the system prompt; empty for none."""
        self.system = text

    def set_requester(self, name: str) -> None:
        """Set the name of the user in the prompt."""
        self.requester = name

    def set_responder(self, name: str) -> None:
        """Set the name of the model in the prompt."""
        self.responder = name

    def set_chat_mode_enabled(self, enabled: bool) -> None:
        """Set whether the prompt contains earlier turns."""
        self.chat_mode_enabled = enabled

    def build_initial_prompt(self, chat_prompt: Self) -> None:  # noqa: B027  an optional hook
        """Set the start of every conversation; does nothing by default.

        Override it to call :meth:`set_system`, or :meth:`add_requester_msg` and :meth:`add_responder_msg` for example
        turns. They remain when old turns are dropped to fit the context. The constructor calls this method once.

        :param chat_prompt: the object itself.
        """

    def add_requester_msg(self, text: str) -> None:
        """Add a user message. Raise ValueError if the previous message has no answer."""
        if self.message:
            raise ValueError(f"add_requester_msg: the message {self.message!r} has no answer.")
        self.message = text

    def add_responder_msg(self, text: str | None) -> None:
        """Add the answer to the last user message; None keeps it open. Raise ValueError if there is no message."""
        if not self.message:
            raise ValueError("add_responder_msg: must follow add_requester_msg with a non-empty message.")
        if text is not None:
            self._examples.append((self.message, text))
            self.message = ""

    def get_contents(self, opts: object = None) -> Sequence[Content]:
        """Return the messages of the prompt, oldest first; the last one is the answer to generate.

        :param opts: accepted for compatibility with chatstream, and ignored.
        """
        contents = []
        for turn in self._past():
            contents += [Content(self.requester, turn.user), Content(self.responder, turn.answer)]
        return [*contents, Content(self.requester, self.replace_input(self.message)), Content(self.responder, None)]

    def get_messages(self) -> list[dict[str, str]]:
        """Return chat messages: dicts of role (system, user, assistant) and content, oldest first.

        The last one is the new user message, or :attr:`open_answer` if it is not empty. Answers also have their
        thoughts, as ``reasoning_content``, if the prompt contains them (:attr:`contains_thoughts`).
        """
        messages = [{"role": "system", "content": self.replace_input(self.system)}] if self.system else []
        contains_thoughts = self.contains_thoughts
        for turn in self._past():
            messages.append({"role": "user", "content": turn.user})
            messages.append({"role": "assistant", "content": turn.answer})
            if turn.thinking and contains_thoughts:
                messages[-1]["reasoning_content"] = turn.thinking
        messages.append({"role": "user", "content": self.replace_input(self.message)})
        if self.open_answer:
            messages.append({"role": "assistant", "content": self.replace_input(self.open_answer)})
        return messages

    @property
    def contains_thoughts(self) -> bool:
        """True if the prompt contains the thoughts of earlier answers; False unless a chat template reads them."""
        return False

    def get_stop_strs(self) -> list[str]:
        """Return the strings that end the answer and are not part of it, such as the user's name."""
        return []

    def stop_strings(self) -> tuple[str, ...]:
        """Return the strings that end the answer: those of :meth:`get_stop_strs`."""
        return tuple(self.get_stop_strs())

    def get_replacement_when_input(self) -> list[tuple[str, str]]:
        """Return pairs (old, new) to replace in all texts of the prompt, for models with a special notation.

        If two match at the same position, the first in the list applies. Replacements are not replaced again.
        """
        return []

    def get_replacement_when_output(self) -> list[tuple[str, str]]:
        """Return pairs (old, new) to replace in the model's output."""
        return []

    def replace_input(self, text: str) -> str:
        """Apply the replacements of :meth:`get_replacement_when_input` to ``text``."""
        pairs = self.get_replacement_when_input()
        if not pairs:
            return text
        new = dict(reversed(pairs))  # of duplicates, the first applies
        return re.sub("|".join(re.escape(old) for old, _ in pairs), lambda match: new[match[0]], text)

    @abstractmethod
    def create_prompt(self) -> str:
        """Return the text of the prompt, up to the answer to generate."""

    def check(self) -> None:  # noqa: B027
        """Raise ValueError if the class does not support its tokenizer. Called when the model is loaded."""

    def encode(self) -> list[int]:
        """Return the token ids of the prompt, including :attr:`open_answer`.

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

    def _marker(self, mark: Mark) -> Callable[[str], str]:
        """Return a function that marks a text, except for the substrings that :meth:`replace_input` replaces."""
        pairs = self.get_replacement_when_input()
        pattern = re.compile("|".join(re.escape(old) for old, _ in pairs)) if pairs else None

        def marked(text: str) -> str:
            if pattern is None:
                return str(mark(text))
            separators = [*pattern.findall(text), ""]
            return "".join(f"{mark(part)}{old}" for part, old in zip(pattern.split(text), separators, strict=True))

        return marked

    def _marked(self, mark: Mark) -> Self:
        """Return a copy whose texts are marked (:meth:`_marker`)."""
        marked = self._marker(mark)
        copied = copy.copy(self)
        copied.message = marked(self.message)
        copied.open_thinking = str(mark(self.open_thinking))
        if (system := marked(self.system)) != self.system:  # system may be a property without a setter
            copied.system = system
        copied.template_kwargs = {name: mark(value) for name, value in self.template_kwargs.items()}
        copied._examples = [(marked(user), marked(answer)) for user, answer in self._examples]
        contains_thoughts = self.contains_thoughts

        def marked_turn(turn: Turn) -> Turn:
            thinking = str(mark(turn.thinking)) if contains_thoughts else ""
            return dataclasses.replace(turn, user=marked(turn.user), answer=marked(turn.answer), thinking=thinking)

        first = self.conversation.first
        turns = [turn if index < first else marked_turn(turn) for index, turn in enumerate(self.conversation.turns)]
        copied.conversation = dataclasses.replace(self.conversation, turns=tuple(turns))
        return copied

    def _past(self) -> list[Turn]:
        """Return the example turns and the turns of the conversation.

        The input replacements apply to messages and answers: the conversation stores answers with the output
        replacements. Thoughts are stored as the model wrote them.
        """
        examples = (Turn(user, answer, "") for user, answer in self._examples)
        return [
            Turn(self.replace_input(turn.user), self.replace_input(turn.answer), "", thinking=turn.thinking)
            for turn in (*examples, *self._turns())
        ]

    def _turns(self) -> Sequence[Turn]:
        """Return the turns of the conversation that the prompt contains."""
        return self.conversation.turns[self.conversation.first :] if self.chat_mode_enabled else ()


def without_thoughts(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return ``messages`` without the field of :meth:`AbstractChatPrompt.get_messages` for thoughts."""
    return [{key: text for key, text in message.items() if key != "reasoning_content"} for message in messages]
