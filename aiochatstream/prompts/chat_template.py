"""The prompt for every model whose tokenizer has a chat template."""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aiochatstream.errors import InvalidValue
from aiochatstream.prompts.base import AbstractChatPrompt
from aiochatstream.prompts.control_tokens import Mark, encode_prompt
from aiochatstream.prompts.presets import find_preset
from aiochatstream.prompts.template_traits import in_parts, refusals, template_errors, traits_of
from aiochatstream.prompts.tools import parse_arguments

SYSTEM = ("system", "developer")

LETTERS = string.ascii_letters + string.digits
SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")

Message = dict[str, Any]
"""A chat message: role, content, and what else the template knows."""


class ChatPrompt(AbstractChatPrompt):
    """Follows the tokenizer's own chat template."""

    @classmethod
    def for_model(cls, tokenizer_or_name: Any) -> type[AbstractChatPrompt]:
        """The prompt class for a model: this one if its tokenizer has a chat template, else the preset for its name.

        :param tokenizer_or_name: the model's tokenizer, or its id on the hub or folder, which only a preset can fit.

        Raises ValueError where there is neither.
        """
        if getattr(tokenizer_or_name, "chat_template", None):
            return cls
        if isinstance(tokenizer_or_name, str):
            name, missing = tokenizer_or_name, "prompt preset"
        else:
            name, missing = getattr(tokenizer_or_name, "name_or_path", ""), "chat template and no prompt preset"
        preset = find_preset(name)
        if preset is None:
            raise ValueError(
                f"There is no {missing} for the model {name!r}: write a subclass of AbstractChatPrompt, whose "
                "create_prompt gives the text as the model expects it, and hand it to ChatStream as chat_prompt_clazz."
            )
        return preset

    def create_prompt(self) -> str:
        """The text up to the open answer, special tokens included."""
        messages = self.get_messages()
        return render_messages(self.tokenizer, messages[:-1] if self.open_answer else messages)

    def check(self) -> None:
        """Raises ValueError for a template that leaves out what users say."""
        if self.tokenizer is not None and not traits_of(self.tokenizer).text:
            raise ValueError(
                "The model's chat template leaves out the text of the user's messages. Set another chat_template on "
                "the tokenizer, or hand ChatStream a chat_prompt_clazz of your own."
            )

    def encode(self) -> list[int]:
        """The template's own token ids, whatever :attr:`add_special_tokens` says: it could add a second BOS."""
        return self._encode(add_special_tokens=False)


def render_messages(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] | None = None,
    mark: Mark = lambda value: value,
) -> str:
    """The messages as the model's chat template writes them, and the beginning of the answer.

    :param messages: as OpenAI's API has them, but content as text: roles system, developer (told as system where the
        template knows no other), user, assistant, tool; tool_calls with their arguments as JSON or as an object.
    :param tools: functions that the model may call, as OpenAI's API has them, for templates that tell of them.
    :param mark: is applied to all texts, see :func:`~aiochatstream.prompts.control_tokens.encode_prompt`.

    Raises :class:`~aiochatstream.errors.InvalidValue` for what the template does not take, and ValueError where there
    is no template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "This model's tokenizer has no chat template. Hand ChatStream a chat_prompt_clazz of your own: "
            "a subclass of AbstractChatPrompt that writes the prompt as the model expects it."
        )
    tools = list(tools) if tools else None
    knows_developer = "developer" in tokenizer.get_chat_template(tools=tools)
    traits = traits_of(tokenizer, tools=bool(tools))
    told = [_for_template(message, knows_developer=knows_developer) for message in messages]
    if not traits.system:
        told = _system_in_first_user_message(told)

    def rendered(messages: Sequence[Message]) -> str:
        told = [
            {key: value if key == "role" else mark(value) for key, value in message.items()} for message in messages
        ]
        if traits.parts:
            told = [
                {**one, "content": in_parts(one["content"])} if isinstance(one.get("content"), str) else one
                for one in told
            ]
        return str(tokenizer.apply_chat_template(told, tools=mark(tools), add_generation_prompt=True, tokenize=False))

    try:
        try:
            return rendered(told)
        except template_errors():
            with_short_ids = [_with_short_ids(message) for message in told]
            if with_short_ids == told:
                raise
            with suppress(*refusals()):
                return rendered(with_short_ids)
            raise
    except refusals() as error:
        reason = str(error).removesuffix(".")  # of some models, two messages of one role
        raise InvalidValue(f"The model's chat template refuses this conversation: {reason}.") from error


def encode_messages(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] | None = None,
    *,
    continue_final: bool = False,
    special_tokens_in_text: bool = False,
) -> list[int]:
    """The token ids of :func:`render_messages`: those of ``apply_chat_template``, with control tokens of the template
    only.

    :param special_tokens_in_text: as :class:`~aiochatstream.prompts.AbstractChatPrompt` has it.
    :param continue_final: the last message is an assistant's text, and has no end: the model goes on with it. (Not by
        the template's continue_final_message, which trims it, and leaves out what templates put before an answer.)

    Raises as :func:`render_messages`.
    """
    begun = ""
    if continue_final:
        *messages, final = messages or [{}]
        if final.get("role") != "assistant" or not isinstance(final.get("content"), str):
            raise InvalidValue("messages: the last one must be an assistant's text, to be continued.")
        begun = final["content"]
    return encode_prompt(
        tokenizer,
        lambda mark: render_messages(tokenizer, messages, tools, mark),
        begun,
        add_special_tokens=False,
        special_tokens_in_text=special_tokens_in_text,
    )


def _for_template(message: Message, *, knows_developer: bool) -> Message:
    """A message as templates expect it."""
    told = dict(message)
    if told["role"] == "developer" and not knows_developer:
        told["role"] = "system"
    if not told.get("tool_calls"):
        told.pop("tool_calls", None)
    else:
        told["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _arguments(call["function"])}}
            for call in told["tool_calls"]
        ]
    return told


def _arguments(function: dict[str, Any]) -> Any:
    """The arguments of a call as an object: most templates write JSON themselves."""
    arguments = function.get("arguments") or {}
    if not isinstance(arguments, str):
        return arguments
    try:
        return parse_arguments(arguments)
    except (ValueError, RecursionError):
        raise InvalidValue("messages: the arguments of tool_calls must be JSON.") from None


def _system_in_first_user_message(messages: list[Message]) -> list[Message]:
    """Return the messages with the text of the first system messages before that of the user's after them."""
    at = next((at for at, message in enumerate(messages) if message["role"] not in SYSTEM), len(messages))
    texts = [message.get("content") or "" for message in messages[: at + 1]]
    if (
        not at
        or at == len(messages)
        or messages[at]["role"] != "user"
        or not all(isinstance(one, str) for one in texts)
    ):
        return messages
    return [{**messages[at], "content": "\n\n".join(filter(None, texts))}, *messages[at + 1 :]]


def _with_short_ids(message: Message) -> Message:
    """Return the message with ids of calls as Mistral's templates want them: nine letters and digits."""
    told = dict(message)
    if isinstance(told.get("tool_call_id"), str):
        told["tool_call_id"] = _short_id(told["tool_call_id"])
    if told.get("tool_calls"):
        told["tool_calls"] = [
            {**call, "id": _short_id(call["id"])} if isinstance(call.get("id"), str) else call
            for call in told["tool_calls"]
        ]
    return told


def _short_id(call_id: str) -> str:
    if SHORT_ID.fullmatch(call_id):
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode()).digest())
    return "".join(LETTERS[number // len(LETTERS) ** place % len(LETTERS)] for place in range(9))
