"""The body of ``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from aiochatstream.params import STRICT, Flag, Logprobs, MaxNewTokens
from aiochatstream.web.openai.request_models import (
    MOST_ITEMS,
    ChoicesRequest,
    Content,
    Name,
    Refusing,
    ResponseFormat,
    Text,
)


class Called(BaseModel):
    """A function and what it is called with, as JSON."""

    model_config = STRICT

    name: Name
    arguments: Text


class PastCall(BaseModel):
    """What the model asked for in an earlier answer."""

    model_config = STRICT

    id: Text
    type: Literal["function"] = "function"
    function: Called


class ChatMessage(Refusing):
    """One message of a chat. A refusal stands for the content; an assistant's message may have neither."""

    model_config = STRICT

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"function_call": (), "audio": ()}

    role: Annotated[
        Literal["system", "developer", "user", "assistant", "tool"],
        Field(description="'system', 'developer', 'user', 'assistant' or 'tool'"),
    ]
    content: Content | None = None
    refusal: Text | None = None
    name: Text | None = None
    tool_calls: Annotated[list[PastCall], Field(max_length=128, fail_fast=True)] | None = None
    tool_call_id: Text | None = None

    @model_validator(mode="after")
    def _say_something(self) -> ChatMessage:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls: go with the role 'assistant' only")
        if self.content is None and self.role != "assistant":
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


class ChatCompletionRequest(ChoicesRequest):
    """The body of ``POST /v1/chat/completions``.

    continue_final_message: the answer goes on with the last message, an assistant's, as with vLLM.
    add_generation_prompt: vLLM's other word for it, the opposite.
    """

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "modalities": (["text"],),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "web_search_options": (),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "moderation": (),
        "echo": (False,),
    }

    messages: Annotated[
        list[ChatMessage],
        Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True, description=f"a list of 1 to {MOST_ITEMS} messages"),
    ]
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
    continue_final_message: Flag | None = None
    add_generation_prompt: Flag | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @model_validator(mode="after")
    def _must_make_sense(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
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
        if self.continue_final_message:
            if self.messages[-1].role != "assistant" or self.messages[-1].tool_calls:
                raise ValueError("continue_final_message: the last message must be the assistant's, without tool_calls")
            if wants_form or self.tool_choice not in (None, "none", "auto"):
                raise ValueError("continue_final_message: does not go with response_format or a forced function call")
        if self.add_generation_prompt is not None and self.add_generation_prompt is bool(self.continue_final_message):
            raise ValueError("add_generation_prompt: must be the opposite of continue_final_message, or absent")
        return self
