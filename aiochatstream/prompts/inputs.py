"""What a model is to continue where the client gives all of it: messages as they are, or bare text. No conversation of
ours is behind it, so nothing is cut to fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from aiochatstream.conversations.conversation import Conversation, Turn
from aiochatstream.errors import InvalidValue
from aiochatstream.prompts.base import AbstractChatPrompt
from aiochatstream.prompts.chat_template import ChatPrompt, encode_messages
from aiochatstream.prompts.context import CHARS_PER_TOKEN
from aiochatstream.prompts.tools import in_words, knows_tools

Message = dict[str, Any]
"""A chat message as templates know it: role, content, and where it is about tools, tool_calls, tool_call_id, name."""

Encoded = tuple[list[dict[str, str]], list[int]]
"""Messages of role and content, for engines without a tokenizer and for recordings; and the token ids, if there are."""


@dataclass(frozen=True)
class GivenMessages:
    """A chat. Where its messages are what a conversation of ours could be, the prompt class writes them as it would
    that; what only a chat template can tell (tools, several messages in a row), the template tells.

    tools: functions that the model may call, each as ``{"type": "function", "function": {...}}``.
    continues: the last message is an assistant's, to be continued; without, an answer begins after it.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    continues: bool = False

    def __len__(self) -> int:
        """How many prompts it is."""
        return 1

    @property
    def leaves_head(self) -> bool:
        """True if only the server's words are before the conversation: no system message and no tools of a client."""
        return not self.tools and not any(one["role"] in ("system", "developer") for one in self.messages)

    def too_long(self, context_len: int) -> bool:
        """Whether it cannot fit into so many tokens: known without a tokenizer, which a long text would hold up."""
        chars = sum(len(one.get("content") or "") for one in self.messages)
        chars += sum(len(str(one.get("tool_calls", ""))) for one in self.messages) + len(str(self.tools))
        return chars > CHARS_PER_TOKEN * context_len

    def encode(self, prompt: AbstractChatPrompt) -> Iterator[Encoded]:
        """The one prompt.

        :param prompt: an object of the server's prompt class, with its tokenizer. Blocking.

        Raises :class:`~aiochatstream.errors.InvalidValue` for messages that cannot be told to this model.
        """
        messages, tools = self.messages, self.tools
        if not knows_tools(prompt.tokenizer):
            messages, tools = in_words(messages, tools), []
        closed = messages[:-1] if self.continues else messages
        if not tools and closed and _put_in(prompt, closed):
            if self.continues:
                prompt.open_answer = messages[-1].get("content") or ""
            yield prompt.get_messages(), [] if prompt.tokenizer is None else prompt.encode()
            return
        told = _head(prompt, messages) + messages
        simple = [{"role": one["role"], "content": one.get("content") or ""} for one in told]
        if prompt.tokenizer is None:
            yield simple, []
        elif isinstance(prompt, ChatPrompt):
            ids = encode_messages(
                prompt.tokenizer,
                told,
                tools or None,
                continue_final=self.continues,
                special_tokens_in_text=prompt.special_tokens_in_text,
            )
            yield simple, ids
        else:
            raise InvalidValue(
                "messages: must be a system message or none, then user and assistant in turn, the user's last; "
                "this model's prompt has no other form."
            )


@dataclass(frozen=True)
class GivenTexts:
    """Texts that the model is to go on with, as they are; each as text or as token ids."""

    texts: list[str | list[int]]
    continues: ClassVar = True
    """As in :class:`GivenMessages`."""
    leaves_head = False
    """As in :class:`GivenMessages`: a text is the client's from its first token on."""

    def __len__(self) -> int:
        """How many prompts they are."""
        return len(self.texts)

    def too_long(self, context_len: int) -> bool:
        """Whether one of them cannot fit into so many tokens, as :meth:`GivenMessages.too_long`."""
        return any(len(text) > context_len * (CHARS_PER_TOKEN if isinstance(text, str) else 1) for text in self.texts)

    def encode(self, prompt: AbstractChatPrompt) -> Iterator[Encoded]:
        """A prompt for each text; the tokenizer adds its special tokens to it (a BOS, mostly).

        Raises :class:`~aiochatstream.errors.InvalidValue` for an empty one, and for token ids without a tokenizer.
        """
        for text in self.texts:
            if isinstance(text, str):
                ids: list[int] = [] if prompt.tokenizer is None else prompt.tokenizer(text)["input_ids"]
            elif prompt.tokenizer is None:
                raise InvalidValue("prompt: must be text; this server's engine has no tokenizer.")
            else:
                ids, text = text, str(prompt.tokenizer.decode(text))
            if prompt.tokenizer is not None and not ids:
                raise InvalidValue("prompt: must have at least one token.")
            yield [{"role": "user", "content": text}], ids


def _put_in(prompt: AbstractChatPrompt, messages: list[Message]) -> bool:
    """Let ``prompt`` hold the messages, if they are what a conversation of ours could be; tell whether they are."""
    has_system = messages[0]["role"] in ("system", "developer")
    spoken = messages[1:] if has_system else messages
    roles = [message["role"] for message in spoken]
    if len(roles) % 2 == 0 or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        return False
    if any(message.get("tool_calls") or message.get("name") for message in spoken):
        return False
    texts = [message.get("content") or "" for message in spoken]
    if has_system:
        prompt.set_system(messages[0].get("content") or "")
    pairs = zip(texts[:-1:2], texts[1::2], strict=True)
    prompt.conversation = Conversation(tuple(Turn(user, answer, "") for user, answer in pairs))
    prompt.message = texts[-1]
    return True


def _head(prompt: AbstractChatPrompt, messages: list[Message]) -> list[Message]:
    """What the prompt class tells the model before every conversation; of the system messages, the client's count."""
    head: list[Message] = list(prompt.get_messages()[:-1])
    if messages[0]["role"] in ("system", "developer"):
        return [message for message in head if message["role"] != "system"]
    return head
