"""Complete input from a client: chat messages, or plain texts.

It belongs to no stored conversation, and is never shortened to fit the context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from aiochatstream.conversations.conversation import Conversation, Turn
from aiochatstream.errors import InvalidValue
from aiochatstream.prompts.base import AbstractChatPrompt, without_thoughts
from aiochatstream.prompts.chat_template import ChatPrompt, encode_messages, thoughts_of
from aiochatstream.prompts.context import CHARS_PER_TOKEN
from aiochatstream.prompts.tools import render_tools_as_text, supports_tools

Message = dict[str, Any]
"""A chat message: role and content; tool_calls, tool_call_id or name for messages about tools; an assistant's thoughts
in reasoning_content, reasoning or thinking."""

Encoded = tuple[list[dict[str, str]], list[int]]
"""Messages of role and content, for engines that read them (none for a text that the client has sent as token ids); and
token ids, empty without a tokenizer."""


@dataclass(frozen=True)
class ChatInput:
    """Chat messages.

    The prompt class writes user and assistant messages that alternate, after an optional system message. Other input
    (tools, several messages of one role in a row) requires a chat template.

    tools: functions that the model may call, each as ``{"type": "function", "function": {...}}``.
    continues: True if the model continues the last message, which is an assistant's.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    continues: bool = False

    def __len__(self) -> int:
        """Return the number of prompts."""
        return 1

    @property
    def has_server_prefix(self) -> bool:
        """True if the prompt starts with the server's own text: the client sent no system message and no tools."""
        return not self.tools and not any(message["role"] in ("system", "developer") for message in self.messages)

    def too_long(self, context_len: int) -> bool:
        """Return True if the input certainly exceeds ``context_len`` tokens. Does not tokenise, which could be slow."""
        chars = sum(len(message.get("content") or "") + len(thoughts_of(message)) for message in self.messages)
        chars += sum(len(str(message.get("tool_calls", ""))) for message in self.messages) + len(str(self.tools))
        return chars > CHARS_PER_TOKEN * context_len

    def tools_for(self, tokenizer: Any) -> tuple[dict[str, Any], ...]:
        """Return the tools whose calls the engine reads.

        There are none if the chat template does not render tools: the prompt then describes them as text, and the model
        does not write calls in the format of its family.
        """
        return tuple(self.tools) if tokenizer is None or supports_tools(tokenizer) else ()

    @property
    def _continues_thought(self) -> bool:
        """True if the last message ends within its thought."""
        return self.continues and not self.messages[-1].get("content") and bool(thoughts_of(self.messages[-1]))

    def encode(self, prompt: AbstractChatPrompt) -> Iterator[Encoded]:
        """Yield the prompt. Blocking.

        :param prompt: an object of the server's prompt class, with its tokenizer.

        Raise :class:`~aiochatstream.errors.InvalidValue` for messages that the model's prompt format does not support.
        """
        messages, tools = self.messages, self.tools
        if not supports_tools(prompt.tokenizer):
            messages, tools = render_tools_as_text(messages, tools), []
        closed = messages[:-1] if self.continues else messages
        if not tools and closed and not self._continues_thought and _set_conversation(prompt, closed):
            if self.continues:
                prompt.open_answer, prompt.open_thinking = messages[-1].get("content") or "", thoughts_of(messages[-1])
            yield without_thoughts(prompt.get_messages()), [] if prompt.tokenizer is None else prompt.encode()
            return
        all_messages = _initial_messages(prompt, messages) + messages
        simple = [{"role": message["role"], "content": message.get("content") or ""} for message in all_messages]
        if prompt.tokenizer is None:
            yield simple, []
        elif isinstance(prompt, ChatPrompt):
            ids = encode_messages(
                prompt.tokenizer,
                all_messages,
                tools or None,
                template_kwargs=prompt.template_kwargs,
                continue_final=self.continues,
                special_tokens_in_text=prompt.special_tokens_in_text,
            )
            yield simple, ids
        else:
            raise InvalidValue(
                "messages: must be an optional system message, then alternating user and assistant messages, ending "
                "with a user message; this model's prompt supports no other form."
            )


@dataclass(frozen=True)
class TextInput:
    """Texts for the model to continue, each as text or as token ids. No prompt format is applied."""

    texts: list[str | list[int]]
    continues: ClassVar = True
    """See :class:`ChatInput`."""
    has_server_prefix: ClassVar = False
    """See :class:`ChatInput`: the client sends the whole text."""

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.texts)

    def too_long(self, context_len: int) -> bool:
        """Return True if a text certainly exceeds ``context_len`` tokens. Does not tokenise, which could be slow."""
        return any(len(text) > context_len * (CHARS_PER_TOKEN if isinstance(text, str) else 1) for text in self.texts)

    def encode(self, prompt: AbstractChatPrompt) -> Iterator[Encoded]:
        """Yield a prompt for each text, with the tokenizer's special tokens (usually a BOS). Blocking.

        Raise :class:`~aiochatstream.errors.InvalidValue` for empty texts, and for token ids without a tokenizer.
        """
        for text in self.texts:
            if not isinstance(text, str):
                if prompt.tokenizer is None:
                    raise InvalidValue("prompt: must be text; this server's engine has no tokenizer.")
                yield [], text
                continue
            ids: list[int] = [] if prompt.tokenizer is None else prompt.tokenizer(text)["input_ids"]
            if prompt.tokenizer is not None and not ids:
                raise InvalidValue("prompt: must contain at least one token.")
            yield text_messages(text), ids


def text_messages(text: str) -> list[dict[str, str]]:
    """Return the messages of a prompt that is a plain text."""
    return [{"role": "user", "content": text}]


def _set_conversation(prompt: AbstractChatPrompt, messages: list[Message]) -> bool:
    """Set the conversation of ``prompt``; return False if the messages do not form one."""
    has_system = messages[0]["role"] in ("system", "developer")
    dialogue = messages[1:] if has_system else messages
    roles = [message["role"] for message in dialogue]
    if len(roles) % 2 == 0 or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        return False
    if any(message.get("tool_calls") or message.get("name") for message in dialogue):
        return False
    texts = [message.get("content") or "" for message in dialogue]
    if has_system:
        prompt.set_system(messages[0].get("content") or "")
    thoughts = map(thoughts_of, dialogue[1::2])
    turns = zip(texts[:-1:2], texts[1::2], thoughts, strict=True)
    prompt.conversation = Conversation(
        tuple(Turn(user, answer, "", thinking=thinking) for user, answer, thinking in turns)
    )
    prompt.message = texts[-1]
    return True


def _initial_messages(prompt: AbstractChatPrompt, messages: list[Message]) -> list[Message]:
    """Return the prompt class's own initial messages; a client's system message replaces the class's."""
    initial: list[Message] = list(prompt.get_messages()[:-1])
    if messages[0]["role"] in ("system", "developer"):
        return [message for message in initial if message["role"] != "system"]
    return initial
