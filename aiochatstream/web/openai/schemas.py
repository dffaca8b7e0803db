"""What requests to OpenAI's API may say.

Fields that are not here are ignored. Those of OpenAI's that would change the answer, and are not supported, are refused
(:attr:`GenerationRequest.UNSUPPORTED`); those that would not (a user's name, say) are taken and have no effect.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from aiochatstream.params import (
    STRICT,
    CountPenalty,
    Flag,
    LogitBias,
    Logprobs,
    MaxNewTokens,
    MinP,
    ParamOverrides,
    RepetitionPenalty,
    Seed,
    StopStrings,
    Temperature,
    TopP,
)


def _list_of_one(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[StopStrings, BeforeValidator(_list_of_one, json_schema_input_type=str | StopStrings)]
TopK = Annotated[int, Field(ge=-1, le=1000, description="a whole number from 1 to 1000; -1 and 0 are off")]
Count = Annotated[int, Field(ge=1, le=128, description="a whole number from 1 to 128")]
Text = Annotated[str, Field(description="a string")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="1 to 64 of A-Z a-z 0-9 - _ .")]


class StreamOptions(BaseModel):
    """include_usage: one more chunk, before the end, tells the tokens."""

    model_config = STRICT

    include_usage: Flag | None = None


class GenerationRequest(BaseModel):
    """What all requests for an answer have in common. What is absent or null keeps the server's own value.

    model: the name that /v1/models tells; absent or empty, the only one that there is.
    """

    model_config = STRICT

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields of OpenAI's that are not supported, each with the values that change nothing, beside null."""

    model: Text | None = None
    stream: Flag | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Seed | None = None
    stop: Annotated[
        StopStrings | None, BeforeValidator(_list_of_one, json_schema_input_type=str | StopStrings | None)
    ] = None
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
        return ParamOverrides(**{**values, "max_new_tokens": self.most_tokens, "top_k": top_k})

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_would_change_the_answer(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for field, harmless in cls.UNSUPPORTED.items():
                value = data.get(field)
                if value is not None and value not in harmless:
                    raise ValueError(f"{field}: is not supported by this server")
        return data


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


class Called(BaseModel):
    """A function and what it is called with, as JSON."""

    model_config = STRICT

    name: Name
    arguments: Text


class ToolCall(BaseModel):
    """What the model asked for in an earlier answer."""

    model_config = STRICT

    id: Text
    type: Literal["function"] = "function"
    function: Called


class Message(BaseModel):
    """One message of a chat."""

    model_config = STRICT

    role: Annotated[
        Literal["system", "developer", "user", "assistant", "tool"],
        Field(description="'system', 'developer', 'user', 'assistant' or 'tool'"),
    ]
    content: Content | None = None
    name: Text | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None

    @model_validator(mode="after")
    def _say_something(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content: must be a string or a list of parts {'type': 'text', 'text': ...}")
        return self


class Function(BaseModel):
    """A function that the model may ask to be called. parameters: their JSON schema."""

    model_config = STRICT

    name: Name
    description: Text | None = None
    parameters: Annotated[dict[str, Any], Field(description="a JSON schema, an object")] | None = None
    strict: Flag | None = None


class Tool(BaseModel):
    """A tool: functions only."""

    model_config = STRICT

    type: Annotated[Literal["function"], Field(description="'function'; other tools are not supported")]
    function: Function


class NamedFunction(BaseModel):
    """The name of a function."""

    model_config = STRICT

    name: Name


class NamedTool(BaseModel):
    """This function is to be called."""

    model_config = STRICT

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(BaseModel):
    """A JSON schema that an answer is to follow; it does so whatever ``strict`` says."""

    model_config = STRICT

    name: Text | None = None
    description: Text | None = None
    json_schema: Annotated[dict[str, Any], Field(alias="schema", description="a JSON schema, an object")]
    strict: Flag | None = None


class ResponseFormat(BaseModel):
    """What form the answer is to have."""

    model_config = STRICT

    type: Annotated[
        Literal["text", "json_object", "json_schema"], Field(description="'text', 'json_object' or 'json_schema'")
    ]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _have_a_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema: goes with type 'json_schema', and the other way round")
        return self


class ChatRequest(ChoicesRequest):
    """The body of ``POST /v1/chat/completions``."""

    UNSUPPORTED = {
        "audio": (),
        "modalities": (["text"],),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "web_search_options": (),
        "moderation": (),
    }

    messages: Annotated[list[Message], Field(min_length=1, description="a list of one message or more")]
    max_completion_tokens: MaxNewTokens | None = None
    logprobs: Flag | None = None
    top_logprobs: Logprobs | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128, description="a list of up to 128 tools")] | None = None
    tool_choice: (
        Annotated[Literal["none", "auto", "required"], Field(description="'none', 'auto', 'required' or a function")]
        | NamedTool
        | None
    ) = None
    parallel_tool_calls: Flag | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @model_validator(mode="after")
    def _must_make_sense(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: go with logprobs=true only")
        names = [tool.function.name for tool in self.tools or ()]
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice: must be one of the functions in tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice: 'required' takes tools")
        if len(set(names)) < len(names):
            raise ValueError("tools: must have different names")
        wants_form = self.response_format is not None and self.response_format.type != "text"
        if wants_form and names and self.tool_choice != "none":
            raise ValueError("response_format: does not go with tools, unless tool_choice is 'none'")
        return self


Ids = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]


class CompletionRequest(ChoicesRequest):
    """The body of ``POST /v1/completions``."""

    UNSUPPORTED = {"suffix": ("",)}

    prompt: Annotated[
        str | Annotated[list[str], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)],
        Field(description="a string, a list of token ids, or a list of one or more of either"),
    ]
    echo: Flag | None = None
    logprobs: Logprobs | None = None
    best_of: Count | None = None

    @property
    def texts(self) -> list[str | list[int]]:
        """The prompts."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[one for one in self.prompt if isinstance(one, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]

    @model_validator(mode="after")
    def _must_be_possible(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of: must be n, or absent; answers are not ranked here")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo: does not go with logprobs; those of a prompt are not computed")
        return self
