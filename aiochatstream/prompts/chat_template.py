"""Prompts of models whose tokenizer has a chat template."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiochatstream.errors import InvalidValue
from aiochatstream.prompts.base import AbstractChatPrompt
from aiochatstream.prompts.control_tokens import Mark, encode_prompt
from aiochatstream.prompts.presets import find_preset
from aiochatstream.prompts.template_traits import (
    THOUGHT_FIELDS,
    TemplateTraits,
    as_parts,
    refusals,
    traits_of,
)
from aiochatstream.prompts.tools import parse_arguments

BEGIN_THOUGHT, END_THOUGHT = "<think>", "</think>"

SYSTEM = ("system", "developer")

LETTERS = string.ascii_letters + string.digits
SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")

Message = dict[str, Any]
"""A chat message: role, content, and other keys of the template."""


class ChatPrompt(AbstractChatPrompt):
    """Prompt in the format of the tokenizer's chat template."""

    @classmethod
    def for_model(cls, tokenizer_or_name: Any) -> type[AbstractChatPrompt]:
        """Return the prompt class of a model: this one if its tokenizer has a chat template, else the preset.

        :param tokenizer_or_name: the model's tokenizer; or its hub id or folder, to look for a preset only.

        Raise ValueError if there is neither.
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
                f"No {missing} for the model {name!r}. Pass chat_prompt_clazz: a subclass of AbstractChatPrompt whose "
                "create_prompt returns the text in the model's format."
            )
        return preset

    def create_prompt(self) -> str:
        """Return the text of the prompt, up to the answer to generate, including special tokens."""
        messages = self.get_messages()
        if not self.open_answer:
            return render_messages(self.tokenizer, messages, template_kwargs=self.template_kwargs)
        return _render_before_answer(
            self.tokenizer, messages[:-1], self.open_thinking, template_kwargs=self.template_kwargs
        )

    @property
    def contains_thoughts(self) -> bool:
        """True if the chat template reads thoughts. It may still omit some, for example of all turns but the last."""
        has_template = bool(getattr(self.tokenizer, "chat_template", None))
        return has_template and traits_of(self.tokenizer).thought_field is not None

    def check(self) -> None:
        """Raise ValueError if the template does not render the text of user messages."""
        if self.tokenizer is not None and not traits_of(self.tokenizer).text:
            raise ValueError(
                "The model's chat template does not render the text of user messages. Set another chat_template on "
                "the tokenizer, or pass chat_prompt_clazz."
            )

    def encode(self) -> list[int]:
        """Return the token ids of the template; ignores :attr:`add_special_tokens`, which could add a second BOS."""
        return self._encode(add_special_tokens=False)


def render_messages(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] | None = None,
    mark: Mark = lambda value: value,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Render messages, and the start of the answer, with the model's chat template.

    :param messages: messages as in OpenAI's API, with text content and the roles system, developer, user, assistant and
        tool. ``developer`` is rendered as system if the template does not support it. Arguments of tool_calls are JSON
        or an object. Thoughts of the assistant are in ``reasoning_content``, ``reasoning`` or ``thinking``.
    :param tools: functions that the model may call, as in OpenAI's API, for templates that render them.
    :param mark: function to apply to all texts, see :func:`~aiochatstream.prompts.control_tokens.encode_prompt`.
    :param template_kwargs: values of other variables of the template.

    Raise :class:`~aiochatstream.errors.InvalidValue` if the template refuses the messages, and ValueError if there is
    no template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "This model's tokenizer has no chat template. Pass chat_prompt_clazz: a subclass of AbstractChatPrompt "
            "whose create_prompt returns the text in the model's format."
        )
    tools = list(tools) if tools else None
    supports_developer = "developer" in tokenizer.get_chat_template(tools=tools)
    traits = traits_of(tokenizer, tools=bool(tools))
    normalized = [_normalize(message, traits, supports_developer=supports_developer) for message in messages]
    variables = {name: mark(value) for name, value in (template_kwargs or {}).items()}
    if not traits.system:
        normalized = _move_system_into_user_message(normalized)

    def render(messages: Sequence[Message]) -> str:
        marked = [
            {key: value if key == "role" else mark(value) for key, value in message.items()} for message in messages
        ]
        if traits.parts:
            marked = [
                {**message, "content": as_parts(message["content"])}
                if isinstance(message.get("content"), str)
                else message
                for message in marked
            ]
        return str(
            tokenizer.apply_chat_template(
                marked, tools=mark(tools), add_generation_prompt=True, tokenize=False, **variables
            )
        )

    try:
        try:
            return render(normalized)
        except refusals():
            adapted = [_with_one_text(_with_short_ids(message), traits.thought_field) for message in normalized]
            adapted = _without_empty_answers(adapted)
            for candidate in (adapted, [_with_text_arguments(message) for message in adapted]):
                if candidate != normalized:
                    with suppress(*refusals()):
                        return render(candidate)
            raise
    except refusals() as error:
        reason = str(error).removesuffix(".")
        raise InvalidValue(f"The model's chat template refuses this conversation: {reason}.") from error


def encode_messages(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] | None = None,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    continue_final: bool = False,
    special_tokens_in_text: bool = False,
) -> list[int]:
    """Return the token ids of :func:`render_messages`, as ``apply_chat_template`` does.

    Unlike there, only the template writes control tokens: in messages, tools and variables, their names are encoded as
    text.

    :param template_kwargs: see :func:`render_messages`.
    :param continue_final: True continues the last message, an assistant's: its text or, if there is none, its thought.
        (The template's own ``continue_final_message`` trims the text and omits what the template writes before an
        answer.)
    :param special_tokens_in_text: see :class:`~aiochatstream.prompts.AbstractChatPrompt`.

    Raise the errors of :func:`render_messages`.
    """
    open_answer = open_thinking = ""
    if continue_final:
        *messages, final = messages or [{}]
        if final.get("role") != "assistant" or not isinstance(final.get("content"), str):
            raise InvalidValue("messages: the last message must be an assistant's text, to be continued.")
        open_answer, open_thinking = final["content"], thoughts_of(final)

    def render(mark: Mark) -> str:
        options: dict[str, Any] = {"tools": tools, "mark": mark, "template_kwargs": template_kwargs}
        if open_answer:
            return _render_before_answer(tokenizer, messages, open_thinking, **options)
        if open_thinking:
            return _render_before_thought(tokenizer, messages, **options)
        return render_messages(tokenizer, messages, **options)

    return encode_prompt(
        tokenizer,
        render,
        open_answer or open_thinking,
        add_special_tokens=False,
        special_tokens_in_text=special_tokens_in_text,
    )


def _render_before_answer(
    tokenizer: Any,
    messages: Sequence[Message],
    thinking: str,
    tools: Sequence[dict[str, Any]] | None = None,
    mark: Mark = lambda value: value,
    **options: Any,
) -> str:
    """Render messages and the start of an answer whose text is to be continued, up to that text.

    Some templates write more before the text of an answer than before one to generate, for example its thoughts or the
    name of a channel. Others open a thought, which ends before the text.

    :param thinking: thoughts before the text.
    """
    start = render_messages(tokenizer, messages, tools, mark, **options)
    text = _placeholder()
    with suppress(InvalidValue):
        answer = {"role": "assistant", "content": text, "reasoning_content": thinking}
        whole = render_messages(tokenizer, [*messages, answer], tools, mark, **options)
        before = whole.rpartition(text)[0]
        if before.startswith(start) and before[len(start) :].strip():
            return before
    if start.rstrip().endswith(BEGIN_THOUGHT):
        return f"{start}{mark(thinking.strip())}\n{END_THOUGHT}\n\n"
    return start


def _render_before_thought(tokenizer: Any, messages: Sequence[Message], **options: Any) -> str:
    """Render messages and the start of an answer whose thought is to be continued, up to that thought.

    Raise :class:`~aiochatstream.errors.InvalidValue` if the template neither opens thoughts nor renders them.
    """
    start = render_messages(tokenizer, messages, **options)
    if start.rstrip().endswith(BEGIN_THOUGHT):
        return start
    thought = _placeholder()
    with suppress(InvalidValue):
        answer = {"role": "assistant", "content": _placeholder(), "reasoning_content": thought}
        before, thought, _ = render_messages(tokenizer, [*messages, answer], **options).rpartition(thought)
        if thought and before.startswith(start):
            return before
    raise InvalidValue("messages: the model's chat template cannot continue a thought; the last message needs content.")


def _placeholder() -> str:
    """Return a text that occurs nowhere else."""
    return f"text{secrets.randbelow(10**16):016d}"


def _normalize(message: Message, traits: TemplateTraits, *, supports_developer: bool) -> Message:
    """Return ``message`` in the form that the template expects."""
    normalized = {key: value for key, value in message.items() if key not in THOUGHT_FIELDS}
    if traits.thought_field is not None and (thoughts := thoughts_of(message)):
        normalized[traits.thought_field] = thoughts
    if normalized["role"] == "developer" and not supports_developer:
        normalized["role"] = "system"
    if not normalized.get("tool_calls"):
        normalized.pop("tool_calls", None)
    else:
        normalized["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _arguments(call["function"])}}
            for call in normalized["tool_calls"]
        ]
    return normalized


def thoughts_of(message: Message) -> str:
    """Return the thoughts of an assistant's message; empty if there are none."""
    if message["role"] != "assistant":
        return ""
    return next((str(message[field]) for field in THOUGHT_FIELDS if message.get(field)), "")


def _arguments(function: dict[str, Any]) -> Any:
    """Return the arguments of a call as an object: most templates render them as JSON themselves."""
    arguments = function.get("arguments") or {}
    if not isinstance(arguments, str):
        return arguments
    try:
        return parse_arguments(arguments)
    except (ValueError, RecursionError):
        raise InvalidValue("messages: the arguments of tool_calls must be JSON.") from None


def _move_system_into_user_message(messages: list[Message]) -> list[Message]:
    """Return ``messages`` with the texts of the leading system messages at the start of the first user message."""
    first = next((index for index, message in enumerate(messages) if message["role"] not in SYSTEM), len(messages))
    texts = [message.get("content") or "" for message in messages[: first + 1]]
    if (
        not first
        or first == len(messages)
        or messages[first]["role"] != "user"
        or not all(isinstance(text, str) for text in texts)
    ):
        return messages
    return [{**messages[first], "content": "\n\n".join(filter(None, texts))}, *messages[first + 1 :]]


def _with_short_ids(message: Message) -> Message:
    """Return ``message`` with call ids of nine letters and digits, which Mistral's templates require."""
    shortened = dict(message)
    if isinstance(shortened.get("tool_call_id"), str):
        shortened["tool_call_id"] = _short_id(shortened["tool_call_id"])
    if shortened.get("tool_calls"):
        shortened["tool_calls"] = [
            {**call, "id": _short_id(call["id"])} if isinstance(call.get("id"), str) else call
            for call in shortened["tool_calls"]
        ]
    return shortened


def _with_text_arguments(message: Message) -> Message:
    """Return ``message`` with the arguments of calls as JSON, which DeepSeek's templates require."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}}
        for call in message["tool_calls"]
        for arguments in [call["function"]["arguments"]]
    ]
    return {**message, "tool_calls": calls}


def _with_one_text(message: Message, thought_field: str | None) -> Message:
    """Return a message with calls whose content is part of its thoughts: gpt-oss's template refuses both together.

    :param thought_field: field of the thoughts; None if the template reads none.
    """
    if thought_field is None or not (message.get("tool_calls") and message.get("content") and thought_field in message):
        return message
    return {**message, "content": "", thought_field: f"{message[thought_field]}\n\n{message['content']}"}


def _without_empty_answers(messages: list[Message]) -> list[Message]:
    """Return ``messages`` without the assistant's empty ones, which some templates refuse; the user messages before and
    after such a message become one.
    """
    joined: list[Message] = []
    skipped = False
    for message in messages:
        if message["role"] == "assistant" and not message.get("content") and not message.get("tool_calls"):
            skipped = True
        elif skipped and joined and joined[-1]["role"] == message["role"] == "user":
            joined[-1] = {**message, "content": f"{joined[-1]['content']}\n\n{message['content']}"}
            skipped = False
        else:
            joined.append(message)
            skipped = False
    return joined


def _short_id(call_id: str) -> str:
    if SHORT_ID.fullmatch(call_id):
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode()).digest())
    return "".join(LETTERS[number // len(LETTERS) ** place % len(LETTERS)] for place in range(9))
