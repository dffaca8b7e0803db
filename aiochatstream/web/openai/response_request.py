"""The body of ``POST /v1/responses``, for text and without state."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from aiochatstream.params import Flag, Logprobs
from aiochatstream.validation import STRICT
from aiochatstream.web.openai.request_models import (
    MAX_ITEMS,
    Effort,
    FormatType,
    GenerationRequest,
    MaxTokens,
    MessageRole,
    OpenAIModel,
    String,
    TextContent,
)

LOGPROBS = "message.output_text.logprobs"
"""Item of ``include`` that requests logprobs."""


class InputItem(BaseModel):
    """A message of the input, or the thoughts before an assistant's message, which have the same role.

    Thoughts are sent as the output contains them: with the type ``reasoning``, and parts as content or summary.
    """

    model_config = STRICT

    type: Literal["message", "reasoning"] = "message"
    role: MessageRole
    content: TextContent

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, data: Any) -> Any:
        item_type = data.get("type", "message") if isinstance(data, dict) else "message"
        if item_type == "reasoning":
            return {"type": "reasoning", "role": "assistant", "content": _thoughts_of(data)}
        if item_type != "message":
            raise ValueError(f"type: must be 'message' or 'reasoning', not {str(item_type)[:40]!r}")
        return data


def _thoughts_of(item: dict[str, Any]) -> Any:
    """Return the content of a reasoning item as a message's; empty if it is encrypted."""
    content = item.get("content") or item.get("summary") or ""
    if not isinstance(content, list):
        return content
    return [{**part, "type": "text"} if isinstance(part, dict) else part for part in content]


def _as_messages(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


ItemList = Annotated[list[InputItem], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
Input = Annotated[
    ItemList,
    Field(description=f"a string or a list of 1 to {MAX_ITEMS} messages"),
    BeforeValidator(_as_messages, json_schema_input_type=str | ItemList),
]


class TextFormat(BaseModel):
    """Format of the text. It conforms to a schema regardless of ``strict``."""

    model_config = STRICT

    type: FormatType
    name: String | None = None
    description: String | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="a JSON schema, an object")
    strict: Flag | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> TextFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("schema: must be sent with type 'json_schema', and only then")
        return self


class TextOptions(OpenAIModel):
    """Options of the text."""

    model_config = STRICT

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}

    format: TextFormat | None = None


class ReasoningOptions(BaseModel):
    """Options of thoughts. ``summary`` and others have no effect."""

    model_config = STRICT

    effort: Effort | None = None


class ResponseRequest(GenerationRequest):
    """The body of ``POST /v1/responses``. ``store`` has no effect: nothing is stored."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "previous_response_id": (),
        "conversation": (),
        "background": (False,),
        "prompt": (),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "truncation": ("disabled",),
        "moderation": (),
        "image": (),
        "n": (1,),
    }

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "max_completion_tokens": "max_output_tokens",
        "response_format": "text.format",
        "logprobs": "top_logprobs",
    }

    input: Input
    instructions: String | None = None
    max_output_tokens: MaxTokens | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    top_logprobs: Logprobs | None = None
    include: list[str] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16, description="an object of up to 16 strings")] | None = None

    @model_validator(mode="after")
    def _check_input(self) -> ResponseRequest:
        if all(item.type == "reasoning" for item in self.input):
            raise ValueError("input: must contain a message")
        return self

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_output_tokens

    @property
    def effort(self) -> str | None:
        return None if self.reasoning is None else self.reasoning.effort

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The instructions and the input, as messages for chat templates. Thoughts belong to the assistant's message
        that follows them; others are ignored.
        """
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        thoughts = ""
        for item in self.input:
            if item.type == "reasoning":
                thoughts += item.content
                continue
            message: dict[str, Any] = {"role": item.role, "content": item.content}
            if thoughts and item.role == "assistant":
                message["reasoning_content"] = thoughts
            messages.append(message)
            thoughts = ""
        return messages

    @property
    def logprobs(self) -> int | None:
        """Number of the most likely tokens whose logprobs are sent; None: no logprobs."""
        return self.top_logprobs or 0 if self.top_logprobs is not None or LOGPROBS in (self.include or ()) else None
