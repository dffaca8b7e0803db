"""What requests to OpenAI's API may say.

Fields that are not here are ignored. Those of OpenAI's that would change the answer, and are not supported, are refused
(:attr:`Refusing.UNSUPPORTED`); those that would not (a user's name, say) are taken and have no effect.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from aiochatstream.constraint import Constraint
from aiochatstream.params import (
    STRICT,
    CountPenalty,
    Flag,
    LogitBias,
    MaxNewTokens,
    MinP,
    ParamOverrides,
    RepetitionPenalty,
    StopStrings,
    Temperature,
    TopP,
)


def _list_of_one(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stops = Annotated[StopStrings, Field(description="a string, or a list of up to 16, of 1 to 128 characters each")]
Stop = Annotated[StopStrings, BeforeValidator(_list_of_one, json_schema_input_type=str | Stops)]
TopK = Annotated[int, Field(ge=-1, le=1000, description="a whole number from 1 to 1000; -1 and 0 are off")]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1, description="a whole number from -2**63 to 2**63 - 1")]
Count = Annotated[int, Field(ge=1, le=128, description="a whole number from 1 to 128")]
Text = Annotated[str, Field(description="a string")]

MOST_ITEMS = 2048
"""Of a list of messages or texts, as with OpenAI. Lists that may be long fail with the first item that is wrong
(``fail_fast``): to gather all that is would hold the event loop for seconds."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="1 to 64 of A-Z a-z 0-9 - _ .")]


class StreamOptions(BaseModel):
    """include_usage: one more chunk, before the end, tells the tokens."""

    model_config = STRICT

    include_usage: Flag | None = None


class Refusing(BaseModel):
    """Something of a request where OpenAI knows fields that are not supported here."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """These, each with the values that change nothing, beside null."""

    ELSEWHERE: ClassVar[dict[str, str]] = {}
    """Fields of OpenAI's other endpoints, each with what it is called here."""

    EMPTY: ClassVar[frozenset[str]] = frozenset({"messages", "input", "prompt", "web_search_options"})
    """Fields whose empty list or object is a value; every other one is as absent."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_would_change_the_answer(cls, data: Any) -> Any:
        if isinstance(data, dict):
            data = {name: value for name, value in data.items() if name in cls.EMPTY or value not in ([], {})}
            for field, harmless in cls.UNSUPPORTED.items():
                value = data.get(field)
                if isinstance(value, dict):
                    value = {name: inner for name, inner in value.items() if inner is not None}
                if value is not None and value not in harmless:
                    raise ValueError(f"{field}: is not supported by this server")
            for field, name in cls.ELSEWHERE.items():
                if data.get(field) is not None:
                    raise ValueError(f"{field}: is called {name} here")
        return data


class GenerationRequest(Refusing):
    """What all requests for an answer have in common. What is absent or null keeps the server's own value.

    model: the name that /v1/models tells; absent or empty, the only one that there is.
    """

    model_config = STRICT

    model: Text | None = None
    stream: Flag | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    presence_penalty: CountPenalty | None = None
    frequency_penalty: CountPenalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: LogitBias | None = None
    ignore_eos: Flag | None = None

    @property
    def most_tokens(self) -> int | None:
        """What the answer may have."""
        raise NotImplementedError

    @property
    def overrides(self) -> ParamOverrides:
        """The same for the engine."""
        same = ParamOverrides.model_fields.keys() & type(self).model_fields.keys()
        values = {name: getattr(self, name) for name in same}
        top_k = None if self.top_k is None else max(0, self.top_k)
        seed = None if self.seed is None else self.seed % 2**63
        return ParamOverrides(**{**values, "max_new_tokens": self.most_tokens, "top_k": top_k, "seed": seed})


class ChoicesRequest(GenerationRequest):
    """Several answers at once, as the older endpoints make them."""

    n: Count | None = None
    max_tokens: MaxNewTokens | None = None
    stream_options: StreamOptions | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether the stream tells the tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @model_validator(mode="after")
    def _stream_options_go_with_a_stream(self) -> ChoicesRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: go with stream=true only")
        return self


class TextPart(BaseModel):
    """A part of a message."""

    model_config = STRICT

    type: Literal["text"]
    text: Text


TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Kinds of parts that are text, and where each has it."""


def text_of(content: Any) -> Any:
    """The parts of a message as one text, a line each."""
    if content is None or isinstance(content, str):
        return content
    if content == []:
        return None
    if not isinstance(content, list):
        raise ValueError("must be a string or a list of parts {'type': 'text', 'text': ...}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind not in TEXT_PARTS:
            raise ValueError(f"parts of type {kind[:40]!r} are not supported; this model reads text only")
        text = part.get(TEXT_PARTS[kind]) if isinstance(part, dict) and isinstance(kind, str) else None
        if not isinstance(text, str):
            raise ValueError("each part must be {'type': 'text', 'text': a string}")
        texts.append(text)
    return "\n".join(texts)


Content = Annotated[str, BeforeValidator(text_of, json_schema_input_type=str | list[TextPart])]


MessageRole = Annotated[
    Literal["system", "developer", "user", "assistant"],
    Field(description="'system', 'developer', 'user' or 'assistant'"),
]
FormatType = Annotated[
    Literal["text", "json_object", "json_schema"], Field(description="'text', 'json_object' or 'json_schema'")
]


class JsonSchema(BaseModel):
    """A JSON schema that an answer is to follow; it does so whatever ``strict`` says."""

    model_config = STRICT

    name: Text | None = None
    description: Text | None = None
    json_schema: dict[str, Any] = Field(alias="schema", description="a JSON schema, an object")
    strict: Flag | None = None


class ResponseFormat(BaseModel):
    """What form the answer is to have."""

    model_config = STRICT

    type: FormatType
    json_schema: JsonSchema | None = None

    @property
    def constraint(self) -> Constraint | None:
        """The same for the engine."""
        return constraint_of(self.type, None if self.json_schema is None else self.json_schema.json_schema)

    @model_validator(mode="after")
    def _have_a_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema: goes with type 'json_schema', and the other way round")
        return self


def constraint_of(kind: str, schema: dict[str, Any] | None) -> Constraint | None:
    """The form that an answer of this format has."""
    if schema is not None:
        return Constraint.json_schema(schema)
    return Constraint("json_object") if kind == "json_object" else None
