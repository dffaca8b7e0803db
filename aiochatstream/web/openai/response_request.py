"""The body of ``POST /v1/responses``: text in, text out, and nothing kept."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from aiochatstream.params import STRICT, Flag, Logprobs, MaxNewTokens
from aiochatstream.web.openai.request_models import (
    MOST_ITEMS,
    Content,
    FormatType,
    GenerationRequest,
    MessageRole,
    Refusing,
    Text,
)

LOGPROBS = "message.output_text.logprobs"


class InputMessage(BaseModel):
    """One message of the input."""

    model_config = STRICT

    role: MessageRole
    content: Content

    @model_validator(mode="before")
    @classmethod
    def _only_messages(cls, data: Any) -> Any:
        kind = data.get("type", "message") if isinstance(data, dict) else "message"
        if kind != "message":
            raise ValueError(f"type: items of type {str(kind)[:40]!r} are not supported; messages are")
        return data


def _as_messages(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


Messages = Annotated[list[InputMessage], Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True)]
Input = Annotated[
    Messages,
    Field(description=f"a string or a list of 1 to {MOST_ITEMS} messages"),
    BeforeValidator(_as_messages, json_schema_input_type=str | Messages),
]


class TextFormat(BaseModel):
    """What form the text is to have; a schema does so whatever ``strict`` says."""

    model_config = STRICT

    type: FormatType
    name: Text | None = None
    description: Text | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="a JSON schema, an object")
    strict: Flag | None = None

    @model_validator(mode="after")
    def _have_a_schema(self) -> TextFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("schema: goes with type 'json_schema', and the other way round")
        return self


class TextOptions(Refusing):
    """What the text is to be."""

    model_config = STRICT

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}

    format: TextFormat | None = None


class ResponseRequest(GenerationRequest):
    """A response. ``store`` has no effect: nothing is kept, and the answer says so."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "previous_response_id": (),
        "conversation": (),
        "background": (False,),
        "prompt": (),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "truncation": ("disabled",),
        "reasoning": ({}, {"effort": "none"}),
        "moderation": (),
        "image": (),
        "n": (1,),
    }

    ELSEWHERE: ClassVar[dict[str, str]] = {
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "max_completion_tokens": "max_output_tokens",
        "response_format": "text.format",
        "logprobs": "top_logprobs",
    }

    input: Input
    instructions: Text | None = None
    max_output_tokens: MaxNewTokens | None = None
    text: TextOptions | None = None
    top_logprobs: Logprobs | None = None
    include: list[str] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16, description="an object of up to 16 strings")] | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_output_tokens

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All that the model is told, as chat templates know it."""
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return [*first, *(message.model_dump() for message in self.input)]

    @property
    def logprobs(self) -> int | None:
        """How many of the likeliest tokens are told; None tells nothing."""
        return self.top_logprobs or 0 if self.top_logprobs is not None or LOGPROBS in (self.include or ()) else None
