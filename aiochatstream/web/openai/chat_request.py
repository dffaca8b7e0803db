"""The body of ``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from aiochatstream.params import ChatTemplateKwargs, Flag, Logprobs
from aiochatstream.validation import STRICT
from aiochatstream.web.openai.request_models import (
    MAX_ITEMS,
    ChoicesRequest,
    Effort,
    FunctionName,
    MaxTokens,
    OpenAIModel,
    String,
    TextContent,
)


class FunctionCall(BaseModel):
    """A call of a function. arguments: an object as JSON."""

    model_config = STRICT

    name: FunctionName
    arguments: String


class MessageToolCall(BaseModel):
    """A tool call of an earlier answer."""

    model_config = STRICT

    id: String
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(OpenAIModel):
    """A message of a chat. A refusal replaces the content; an assistant's message may have neither.

    reasoning_content, reasoning: thoughts of an assistant's message, under either name; ignored for other roles.
    """

    model_config = STRICT

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"function_call": (), "audio": ()}

    role: Annotated[
        Literal["system", "developer", "user", "assistant", "tool"],
        Field(description="'system', 'developer', 'user', 'assistant' or 'tool'"),
    ]
    content: TextContent | None = None
    refusal: String | None = None
    reasoning_content: String | None = None
    reasoning: String | None = None
    name: String | None = None
    tool_calls: Annotated[list[MessageToolCall], Field(max_length=128, fail_fast=True)] | None = None
    tool_call_id: String | None = None

    @property
    def thoughts(self) -> str:
        """Thoughts before the answer; empty if there are none."""
        return (self.reasoning_content or self.reasoning or "") if self.role == "assistant" else ""

    @model_validator(mode="after")
    def _check_role(self) -> ChatMessage:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls: must only be sent with the role 'assistant'")
        if self.content is None and self.role != "assistant":
            raise ValueError("content: must be a string or a list of parts {'type': 'text', 'text': ...}")
        return self


class FunctionDefinition(BaseModel):
    """A function that the model may call. parameters: JSON schema of its arguments."""

    model_config = STRICT

    name: FunctionName
    description: String | None = None
    parameters: Annotated[dict[str, Any], Field(description="a JSON schema, an object")] | None = None
    strict: Flag | None = None


class FunctionTool(BaseModel):
    """A tool. Only functions are supported."""

    model_config = STRICT

    type: Annotated[Literal["function"], Field(description="'function'; other tools are not supported")]
    function: FunctionDefinition


class FunctionReference(BaseModel):
    """A function in ``tools``, by its name."""

    model_config = STRICT

    name: FunctionName


class NamedToolChoice(BaseModel):
    """A function that the model must call."""

    model_config = STRICT

    type: Literal["function"]
    function: FunctionReference


ChatMessages = Annotated[
    list[ChatMessage],
    Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True, description=f"a list of 1 to {MAX_ITEMS} messages"),
]
Tools = Annotated[list[FunctionTool], Field(max_length=128, description="a list of up to 128 tools")]


class ChatCompletionRequest(ChoicesRequest):
    """The body of ``POST /v1/chat/completions``.

    continue_final_message: the answer continues the last message, an assistant's, as in vLLM.
    add_generation_prompt: vLLM's opposite of continue_final_message.
    """

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "modalities": (["text"],),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "web_search_options": (),
        "verbosity": ("medium",),
        "moderation": (),
        "echo": (False,),
    }

    messages: ChatMessages
    max_completion_tokens: MaxTokens | None = None
    logprobs: Flag | None = None
    top_logprobs: Logprobs | None = None
    tools: Tools | None = None
    tool_choice: (
        Annotated[Literal["none", "auto", "required"], Field(description="'none', 'auto', 'required' or a function")]
        | NamedToolChoice
        | None
    ) = None
    parallel_tool_calls: Flag | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    continue_final_message: Flag | None = None
    add_generation_prompt: Flag | None = None

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def effort(self) -> str | None:
        return self.reasoning_effort

    @model_validator(mode="after")
    def _check_combinations(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: must only be sent with logprobs=true")
        names = [tool.function.name for tool in self.tools or ()]
        if isinstance(self.tool_choice, NamedToolChoice) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice: must be one of the functions in tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice: must not be 'required' without tools")
        if len(set(names)) < len(names):
            raise ValueError("tools: must have unique names")
        is_constrained = self.constraint is not None
        if is_constrained and names and self.tool_choice != "none":
            raise ValueError(f"{self.constraint_field}: must not be combined with tools, unless tool_choice is 'none'")
        if self.continue_final_message and (is_constrained or self.tool_choice not in (None, "none", "auto")):
            raise ValueError("continue_final_message: must not be combined with response_format or a forced call")
        check_continuation(
            self.messages, continues=self.continue_final_message, add_generation_prompt=self.add_generation_prompt
        )
        return self


def check_continuation(
    messages: Sequence[ChatMessage], *, continues: bool | None, add_generation_prompt: bool | None
) -> None:
    """Raise ValueError unless the last message can be continued, if ``continues`` is True."""
    if continues and (messages[-1].role != "assistant" or messages[-1].tool_calls):
        raise ValueError("continue_final_message: the last message must be an assistant's, without tool_calls")
    if add_generation_prompt is not None and add_generation_prompt is bool(continues):
        raise ValueError("add_generation_prompt: must be the opposite of continue_final_message, or absent")
