"""The base class of prompts with chatstream's methods."""

from __future__ import annotations

import copy
from abc import ABCMeta
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Self

from aiochatstream.conversations.conversation import Turn
from aiochatstream.prompts import AbstractChatPrompt as BaseChatPrompt
from aiochatstream.prompts import Content
from aiochatstream.prompts.control_tokens import Mark


class PromptTTL(Enum):
    """Lifetime of turns in the prompt: the whole conversation, or until the next message."""

    MULTI_TURN = 1
    SINGLE_TURN = 2


class RoleType(Enum):
    """Kind of a speaker, independent of its name. The type of an omitted message is UNKNOWN."""

    REQUESTER = 1
    RESPONDER = 2
    UNKNOWN = 3


class ChatContent(Content):
    """A message of a prompt, with chatstream's methods. As a tuple, it is (role, message)."""

    message_id: str | None
    role_type: RoleType
    child_messages: list[str] | None

    def __new__(
        cls,
        role: str,
        message: str | None,
        role_type: RoleType,
        message_id: str | None = None,
        child_messages: list[str] | None = None,
    ) -> ChatContent:
        content = super().__new__(cls, role, message)
        content.message_id, content.role_type, content.child_messages = message_id, role_type, child_messages
        return content

    def get_message_id(self) -> str | None:
        """Return the id of an answer of the conversation; None for other messages."""
        return self.message_id

    def get_role_type(self) -> RoleType:
        """Return the kind of the speaker."""
        return self.role_type

    def has_child_messages(self) -> bool:
        """Return True if the message has child messages, such as the input of an instruction."""
        return self.child_messages is not None

    def get_child_messages(self) -> list[str] | None:
        """Return the child messages; None if there are none."""
        return self.child_messages


class _BuildsInitialPrompt(ABCMeta):
    """Metaclass that calls :meth:`AbstractChatPrompt.build_initial_prompt` after the constructor of the subclass."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        prompt = super().__call__(*args, **kwargs)
        BaseChatPrompt._add_examples(prompt)
        return prompt


class AbstractChatPrompt(BaseChatPrompt, metaclass=_BuildsInitialPrompt):
    """:class:`aiochatstream.AbstractChatPrompt` with chatstream's methods, for classes written for chatstream.

    :meth:`build_initial_prompt` is called after the constructor of the subclass, as in chatstream.
    """

    prompt_ttl: PromptTTL = PromptTTL.MULTI_TURN
    """Lifetime of turns; after SINGLE_TURN, the prompt contains the examples and the newest turn only."""

    prefix_as_stop_str_enabled: bool = False
    """True ends the answer at the text with which :meth:`create_prompt` begins a user message."""

    is_open: bool = True
    """False for the prompt of a finished turn: it ends with the last answer."""

    def __init__(self) -> None:
        self._child_messages: dict[int, list[str]] = {}
        self._contents: list[ChatContent] | None = None
        """Contents that replace those of the conversation."""
        super().__init__()

    def _add_examples(self) -> None:
        """Do nothing: the metaclass adds the examples after the constructor."""

    @property
    def chat_mode(self) -> bool:
        """The same as :attr:`chat_mode_enabled`."""
        return self.chat_mode_enabled

    @chat_mode.setter
    def chat_mode(self, enabled: bool) -> None:
        self.chat_mode_enabled = enabled

    def is_chat_mode_enabled(self) -> bool:
        """Return :attr:`chat_mode_enabled`."""
        return self.chat_mode_enabled

    def set_prompt_ttl(self, prompt_ttl: PromptTTL) -> None:
        """Set the lifetime of turns in the prompt. Raise ValueError unless it is a :class:`PromptTTL`."""
        if not isinstance(prompt_ttl, PromptTTL):
            raise ValueError(f"prompt_ttl: must be a PromptTTL, not {prompt_ttl!r}.")
        self.prompt_ttl = prompt_ttl

    def set_prefix_as_stop_str_enabled(self, enabled: bool) -> None:
        """Set whether the answer ends at the text with which :meth:`create_prompt` begins a user message."""
        self.prefix_as_stop_str_enabled = enabled

    def add_requester_msg(
        self, message: str, child_message: str | None = None, child_messages: Sequence[str] | None = None
    ) -> None:
        """Add a user message.

        :param child_message: text that belongs to the message, such as the input of an instruction.
        :param child_messages: several such texts.

        Raise ValueError for both parameters, for empty ``child_messages``, and if the previous message has no answer.
        """
        if child_message is not None and child_messages is not None:
            raise ValueError("child_messages: must be None if child_message is specified.")
        children = [child_message] if child_message is not None else child_messages
        if children is not None and (isinstance(children, str) or not children):
            raise ValueError(f"child_messages: must be a list of at least one text, not {children!r}.")
        super().add_requester_msg(message)
        if children is not None:
            self._child_messages[len(self._examples)] = list(children)

    def get_contents(self, opts: object = None) -> list[ChatContent]:
        """Return the messages of the prompt, oldest first; the last one is the answer to generate, if there is one.

        :param opts: ``{"to_message_id": id}`` ends with the answer of this id, if there is one;
            ``{"omit_last_message": True}`` removes the text of the last message. Other keys have no effect.
        """
        options = opts if isinstance(opts, Mapping) else {}
        contents = self._all_contents() if self._contents is None else [*self._contents]
        if (message_id := options.get("to_message_id")) is not None:
            ends = (index for index, content in enumerate(contents, start=1) if content.message_id == message_id)
            contents = contents[: next(ends, len(contents))]
        if options.get("omit_last_message") and contents:
            contents[-1] = ChatContent(contents[-1].role, None, RoleType.UNKNOWN)
        return contents

    def _all_contents(self) -> list[ChatContent]:
        examples = [Turn(user, answer, "") for user, answer in self._examples]
        contents = []
        for index, turn in enumerate((*examples, *self._turns())):
            children = self._child_messages.get(index) if index < len(examples) else None
            contents += [self._request(turn.user, children), self._response(turn.answer, turn.message_id or None)]
        if self.is_open:
            contents += [self._request(self.message), self._response(None)]
        return contents

    def _request(self, message: str, children: list[str] | None = None) -> ChatContent:
        replaced = None if children is None else [self.replace_input(child) for child in children]
        return ChatContent(self.requester, self.replace_input(message), RoleType.REQUESTER, child_messages=replaced)

    def _response(self, message: str | None, message_id: str | None = None) -> ChatContent:
        text = None if message is None else self.replace_input(message)
        return ChatContent(self.responder, text, RoleType.RESPONDER, message_id)

    def get_messages(self) -> list[dict[str, str]]:
        """Return chat messages as :meth:`aiochatstream.AbstractChatPrompt.get_messages`.

        Child messages follow their message, after empty lines. A finished turn ends with its answer.
        """
        messages = super().get_messages()
        requests = [message for message in messages if message["role"] == "user"]
        for index, children in self._child_messages.items():
            texts = [requests[index]["content"], *map(self.replace_input, children)]
            requests[index]["content"] = "\n\n".join(texts)
        return messages if self.is_open else messages[:-1]

    def get_requester_last_msg(self) -> str | None:
        """Return the newest user message; None if there is none."""
        return self._last_message(RoleType.REQUESTER)

    def get_responder_last_msg(self) -> str | None:
        """Return the last answer; None while it is to be generated, and if there is none."""
        return self._last_message(RoleType.RESPONDER)

    def _last_message(self, role_type: RoleType) -> str | None:
        contents = reversed(self._all_contents())
        return next((content.message for content in contents if content.role_type is role_type), None)

    def get_turn(self) -> int:
        """Return the number of user messages, including examples, and messages that are no longer in the prompt."""
        return len(self._examples) + len(self.conversation.turns) + self.is_open

    def is_requester_role(self, role: str) -> bool:
        """Return True if ``role`` is the user's name in the prompt."""
        return role == self.requester

    def stop_strings(self) -> tuple[str, ...]:
        """Return the start of a user message, if enabled, and the strings of :meth:`get_stop_strs`.

        chatstream's classes may return None there.
        """
        stops = tuple(self.get_stop_strs() or ())
        prefix = self._request_prefix() if self.prefix_as_stop_str_enabled else ""
        return (prefix, *stops) if prefix else stops

    def _request_prefix(self) -> str:
        """Return the text with which :meth:`create_prompt` begins a user message."""
        prompt = copy.copy(self)
        prompt.set_system("")
        prompt._contents = [ChatContent(self.requester, None, RoleType.REQUESTER)]
        return prompt.create_prompt()

    def _turns(self) -> Sequence[Turn]:
        if self.chat_mode_enabled and self.prompt_ttl is PromptTTL.MULTI_TURN:
            return super()._turns()
        return () if self.is_open else self.conversation.turns[-1:]

    def _marked(self, mark: Mark) -> Self:
        copied = super()._marked(mark)
        marked, children = self._marker(mark), self._child_messages
        copied._child_messages = {index: [*map(marked, texts)] for index, texts in children.items()}
        return copied
