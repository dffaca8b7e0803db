"""Request models that the endpoints of OpenAI's API share.

Unknown fields are ignored, as are fields of OpenAI's API that do not affect the answer, such as ``user``. Unsupported
fields that would affect the answer are refused (:attr:`OpenAIModel.UNSUPPORTED`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from aiochatstream.constraint import Constraint
from aiochatstream.params import (
    EFFORT_LEVELS,
    MAX_NEW_TOKENS,
    CountPenalty,
    Flag,
    LogitBias,
    MaxThinkingTokens,
    MinP,
    ParamOverrides,
    RepetitionPenalty,
    StopStrings,
    Temperature,
    ThinkingLevel,
    TopP,
)
from aiochatstream.prompts.template_arguments import nearest_level
from aiochatstream.validation import STRICT


def _parse_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopList = Annotated[StopStrings, Field(description="a string, or a list of up to 16, of 1 to 128 characters each")]
Stop = Annotated[StopStrings, BeforeValidator(_as_list, json_schema_input_type=str | StopList)]
MaxTokens = Annotated[int, Field(ge=1, description="a whole number of tokens from 1")]
TopK = Annotated[int, Field(ge=-1, le=1000, description="a whole number from 1 to 1000; -1 and 0 are off")]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1, description="a whole number from -2**63 to 2**63 - 1")]
Count = Annotated[int, Field(ge=1, le=128, description="a whole number from 1 to 128")]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
String = Annotated[str, Field(description="a string")]


Effort = Annotated[
    Literal["none", "minimal", "low", "medium", "high", "xhigh"],
    Field(description="'none', 'minimal', 'low', 'medium', 'high' or 'xhigh'"),
]

MAX_ITEMS = 2048
"""Maximum length of a list of messages, as with OpenAI. The validation of long lists stops at the first invalid item
(``fail_fast``): to collect all errors would block the event loop for seconds."""

MAX_CHOICES = 1024
"""Maximum number of texts of which an answer is one."""

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="1 to 64 of A-Z a-z 0-9 - _ .")]


class StreamOptions(BaseModel):
    """include_usage: send the usage in an additional last chunk."""

    model_config = STRICT

    include_usage: Flag | None = None


class OpenAIModel(BaseModel):
    """Base class of models that refuse unsupported fields of OpenAI's API."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Unsupported fields, each with its accepted values besides null, which have no effect."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {}
    """Fields of OpenAI's other endpoints, each with its name on this endpoint."""

    MAY_BE_EMPTY: ClassVar[frozenset[str]] = frozenset({"messages", "input", "prompt", "web_search_options"})
    """Fields in which an empty list or object is a value; in other fields it is treated as absent."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if isinstance(data, dict):
            data = {name: value for name, value in data.items() if name in cls.MAY_BE_EMPTY or value not in ([], {})}
            for field, accepted in cls.UNSUPPORTED.items():
                value = data.get(field)
                if isinstance(value, dict):
                    value = {name: inner for name, inner in value.items() if inner is not None}
                if value is not None and value not in accepted:
                    raise ValueError(f"{field}: is not supported by this server")
            for field, name in cls.OTHER_NAMES.items():
                if data.get(field) is not None:
                    raise ValueError(f"{field}: must be sent as {name} to this endpoint")
        return data


class RequestedModel(BaseModel):
    """The name of the model in a body whose other fields are not read."""

    model_config = STRICT

    model: String | None = None


class ModelRequest(OpenAIModel):
    """Base of requests to a model.

    model: name of a served model, see /v1/models; may be absent or empty.
    """

    model_config = STRICT

    model: String | None = None


class GenerationRequest(ModelRequest):
    """Common fields of generation requests. An absent or null field means the server's value.

    cache_salt: prompts that are reused for later ones only with the same value, as in vLLM; for programs that send the
        requests of several users with one key.
    """

    cache_salt: Annotated[str, Field(min_length=1, max_length=256, description="1 to 256 characters")] | None = None
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
    max_thinking_tokens: MaxThinkingTokens | None = None

    @property
    def max_new_tokens(self) -> int | None:
        """Maximum number of tokens of an answer; None: the server's value."""
        raise NotImplementedError

    @property
    def effort(self) -> str | None:
        """Amount of thoughts, one of :data:`EFFORT_LEVELS`; None: the server's value."""
        return None

    def overrides_for(self, levels: Sequence[ThinkingLevel]) -> ParamOverrides:
        """Return :attr:`overrides` with the level of thinking nearest to :attr:`effort`.

        Many clients send an effort to all models: without ``levels`` it has no effect.

        :param levels: levels that the model supports.
        """
        if self.effort is None:
            return self.overrides
        return self.overrides.model_copy(update={"thinking": nearest_level(EFFORT_LEVELS[self.effort], levels)})

    @property
    def overrides(self) -> ParamOverrides:
        """The parameters by the engine's names, except :attr:`effort`."""
        shared = ParamOverrides.model_fields.keys() & type(self).model_fields.keys()
        values = {name: getattr(self, name) for name in shared}
        top_k = None if self.top_k is None else max(0, self.top_k)
        seed = None if self.seed is None else self.seed % 2**63
        length = None if self.max_new_tokens is None else min(self.max_new_tokens, MAX_NEW_TOKENS)
        return ParamOverrides(**{**values, "max_new_tokens": length, "top_k": top_k, "seed": seed})


class TextPart(BaseModel):
    """A text part of a message."""

    model_config = STRICT

    type: Literal["text"]
    text: String


TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of text parts, each with the name of its text field."""


def join_parts(content: Any) -> Any:
    """Return the content of a message as one string, with a line for each part; None if it has no parts."""
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
            raise ValueError(f"parts of type {kind[:40]!r} are not supported, only text parts")
        text = part.get(TEXT_PARTS[kind]) if isinstance(part, dict) and isinstance(kind, str) else None
        if not isinstance(text, str):
            raise ValueError("must be parts {'type': 'text', 'text': a string}")
        texts.append(text)
    return "\n".join(texts)


TextContent = Annotated[str, BeforeValidator(join_parts, json_schema_input_type=str | list[TextPart])]


MessageRole = Annotated[
    Literal["system", "developer", "user", "assistant"],
    Field(description="'system', 'developer', 'user' or 'assistant'"),
]
FormatType = Annotated[
    Literal["text", "json_object", "json_schema"], Field(description="'text', 'json_object' or 'json_schema'")
]


class JsonSchema(BaseModel):
    """A JSON schema to which an answer conforms, regardless of ``strict``."""

    model_config = STRICT

    name: String | None = None
    description: String | None = None
    json_schema: dict[str, Any] = Field(alias="schema", description="a JSON schema, an object")
    strict: Flag | None = None


class ResponseFormat(BaseModel):
    """Format of the answer."""

    model_config = STRICT

    type: FormatType
    json_schema: JsonSchema | None = None

    @property
    def constraint(self) -> Constraint | None:
        """The constraint for the engine."""
        return format_constraint(self.type, None if self.json_schema is None else self.json_schema.json_schema)

    @model_validator(mode="after")
    def _check_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema: must be sent with type 'json_schema', and only then")
        return self


def format_constraint(format_type: str, schema: dict[str, Any] | None) -> Constraint | None:
    """Return the constraint of a response format; None for plain text."""
    if schema is not None:
        return Constraint.json_schema(schema)
    return Constraint("json_object") if format_type == "json_object" else None


class StructuredOutputs(OpenAIModel):
    """Form of the answer, with exactly one of the fields.

    json_schema: named ``json`` in requests, a JSON schema as an object or as text.
    choice: texts of which the answer is one.
    """

    model_config = STRICT

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "grammar": (),
        "structural_tag": (),
        "whitespace_pattern": (),
    }
    MAY_BE_EMPTY = frozenset({"json"})

    json_schema: (
        Annotated[
            dict[str, Any],
            Field(description="a JSON schema, an object"),
            BeforeValidator(_parse_json, json_schema_input_type=dict[str, Any] | str),
        ]
        | None
    ) = Field(None, alias="json")
    json_object: Annotated[Literal[True], Field(description="true")] | None = None
    regex: Annotated[str, Field(min_length=1, description="a regular expression")] | None = None
    choice: (
        Annotated[
            list[Annotated[str, Field(min_length=1)]],
            Field(min_length=1, max_length=MAX_CHOICES, description=f"a list of 1 to {MAX_CHOICES} texts"),
        ]
        | None
    ) = None

    @property
    def constraint(self) -> Constraint:
        """The constraint for the engine."""
        if self.json_schema is not None:
            return Constraint.json_schema(self.json_schema)
        if self.regex is not None:
            return Constraint("regex", self.regex)
        if self.choice is not None:
            return Constraint("lark", "start: " + " | ".join(map(json.dumps, self.choice)))
        return Constraint("json_object")

    @model_validator(mode="after")
    def _check_count(self) -> StructuredOutputs:
        if sum(value is not None for _, value in self) != 1:
            raise ValueError("json: must be sent, or else exactly one of json_object, regex and choice")
        return self


class ChoicesRequest(GenerationRequest):
    """Common fields of endpoints that can generate several answers.

    structured_outputs, return_token_ids: as in vLLM.
    """

    n: Count | None = None
    max_tokens: MaxTokens | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    return_token_ids: Flag | None = None

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        """True if the stream contains the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def constraint(self) -> Constraint | None:
        """The constraint of the answer's format, for the engine."""
        output_format = self.structured_outputs or self.response_format
        return None if output_format is None else output_format.constraint

    @property
    def constraint_field(self) -> str:
        """Name of the field that specifies :attr:`constraint`."""
        return "response_format" if self.structured_outputs is None else "structured_outputs"

    @model_validator(mode="after")
    def _check_options(self) -> ChoicesRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: must only be sent with stream=true")
        is_formatted = self.response_format is not None and self.response_format.type != "text"
        if self.structured_outputs is not None and is_formatted:
            raise ValueError("structured_outputs: must not be combined with response_format")
        return self
