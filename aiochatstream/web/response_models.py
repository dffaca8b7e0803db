"""Typed dicts of JSON responses, which /openapi.json describes."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from aiochatstream.engines import FinishReason
from aiochatstream.params import ParamSource


class ErrorBody(TypedDict):
    """An error. success, message: for chatstream's clients, only at endpoints that chatstream has."""

    error: str
    detail: str
    success: NotRequired[Literal[False]]
    message: NotRequired[str]


class TokenUsage(TypedDict):
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    thinking_tokens: int


class ResponseTiming(TypedDict):
    queue_s: float
    ttft_s: float | None
    total_s: float


class ChatResponse(TypedDict):
    """An answer. thinking: the model's thoughts, absent if there are none."""

    text: str
    thinking: NotRequired[str]
    message_id: str
    finish_reason: FinishReason
    usage: TokenUsage
    timing: ResponseTiming
    turn: NotRequired[int]
    dropped_turns: NotRequired[int]
    stored: NotRequired[Literal[False]]


class SuccessResponse(TypedDict):
    success: bool
    message: str


class ChangeResponse(SuccessResponse):
    """turn: new turn number of the conversation. dropped_turns: number of turns dropped for lack of space."""

    turn: int
    dropped_turns: NotRequired[int]
    stored: NotRequired[Literal[False]]


class StopResponse(SuccessResponse):
    message_id: str


class HistoryMessage(TypedDict):
    role: Literal["user", "assistant"]
    content: str
    message_id: NotRequired[str]
    state: NotRequired[Literal["complete", "interrupted", "running"]]
    thinking: NotRequired[str]


class HistoryResponse(TypedDict):
    conversation: str
    turn: int
    messages: list[HistoryMessage]


class PromptResponse(SuccessResponse):
    prompt: str | None


class FeedbackResponse(SuccessResponse):
    target_message_id: str


class GenerationParamsResponse(SuccessResponse):
    """limits: minimum and maximum of each number, and lists of other values. sources: origin of each value."""

    generation_params: dict[str, Any]
    limits: dict[str, list[float]]
    sources: dict[str, ParamSource]
    thinking_levels: list[str]
    template_variables: list[str]


class WorkerLoad(TypedDict):
    """Slots and queue of a process, or of all servers that share them."""

    name: str
    processing: int
    waiting: int
    max_processing: int
    max_waiting: int


class LoadResponse(SuccessResponse):
    chatstream_workers: list[WorkerLoad]
    queue_positions: dict[str, int]


class MemoryUsage(TypedDict):
    total_memory: float
    used_memory: float


class GpuMemoryUsage(MemoryUsage):
    index: int


class NodeMemoryUsage(TypedDict):
    name: str
    num_gpus: int
    gpus: list[GpuMemoryUsage]
    cpu: MemoryUsage


class ResourceUsageResponse(SuccessResponse):
    memory_usage: list[NodeMemoryUsage]


class StatusResponse(TypedDict):
    status: Literal["alive", "ready"]
