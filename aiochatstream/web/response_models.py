"""What the endpoints answer as JSON, as plain dicts with types; /openapi.json tells of them."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from aiochatstream.engines import FinishReason


class ErrorBody(TypedDict):
    """error: the code. success, message: the same for chatstream's clients, where it has such an endpoint."""

    error: str
    detail: str
    success: NotRequired[Literal[False]]
    message: NotRequired[str]


class AnswerUsage(TypedDict):
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class AnswerTiming(TypedDict):
    queue_s: float
    ttft_s: float | None
    total_s: float


class ChatAnswer(TypedDict):
    text: str
    message_id: str
    finish_reason: FinishReason
    usage: AnswerUsage
    timing: AnswerTiming
    turn: NotRequired[int]
    dropped_turns: NotRequired[int]
    stored: NotRequired[Literal[False]]


class Done(TypedDict):
    success: bool
    message: str


class Changed(Done):
    """turn: the conversation's number now. dropped_turns: how many there was no more room for."""

    turn: int
    dropped_turns: NotRequired[int]
    stored: NotRequired[Literal[False]]


class Stopped(Done):
    message_id: str


class HistoryMessage(TypedDict):
    role: Literal["user", "assistant"]
    content: str
    message_id: NotRequired[str]
    state: NotRequired[Literal["complete", "interrupted", "running"]]


class History(TypedDict):
    conversation: str
    turn: int
    messages: list[HistoryMessage]


class PromptText(Done):
    prompt: str | None


class FeedbackTaken(Done):
    target_message_id: str


class ParamsAnswer(Done):
    generation_params: dict[str, Any]
    limits: dict[str, list[float]]


class Worker(TypedDict):
    """One process: slots and queue. Those with ``_num`` are chatstream's names."""

    name: str
    processing: int
    waiting: int
    max_processing: int
    max_waiting: int


class Load(Done):
    chatstream_workers: list[Worker]
    queue_positions: dict[str, int]


class Memory(TypedDict):
    total_memory: float
    used_memory: float


class GpuMemory(Memory):
    index: int


class NodeMemory(TypedDict):
    name: str
    num_gpus: int
    gpus: list[GpuMemory]
    cpu: Memory


class ResourceUsage(Done):
    memory_usage: list[NodeMemory]


class Status(TypedDict):
    status: Literal["alive", "ready"]
