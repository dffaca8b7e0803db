"""Events of a turn, from the queue to the end. The last one is Ended or Failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aiochatstream.conversations.user import SaveResult
from aiochatstream.engines import FinishReason, TokenLogprob, ToolCall
from aiochatstream.errors import ChatStreamError


class Usage(NamedTuple):
    """Tokens of the prompt, of the prompt from a cache, of the answer, and of the thoughts in the answer."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    thinking_tokens: int = 0


class Timing(NamedTuple):
    """Seconds since the request was accepted: until its slot, until the first text (None without text), in total."""

    queue_s: float
    ttft_s: float | None
    total_s: float


@dataclass(frozen=True, slots=True)
class Queued:
    """The turn waits in the queue; ``position`` 1 is next."""

    position: int


@dataclass(frozen=True, slots=True)
class Started:
    """The turn has its slot."""


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Token ids of the prompt; only if the client requests token ids."""

    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """Token ids of the next text, thoughts and calls; only if the client requests token ids."""

    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer. The text may be empty if the request asks for logprobs."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Thinking:
    """A piece of the model's thoughts."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCalls:
    """Calls of tools, at this position of the answer."""

    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A heartbeat of :meth:`~aiochatstream.runtime.running_turn.RunningTurn.heartbeats`."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer has ended and is saved, and its slot is free. No event follows.

    save_result: None if nothing was to be saved.
    """

    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    save_result: SaveResult | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer failed. No event follows."""

    error: ChatStreamError
    save_result: SaveResult | None = None


Event = Queued | Started | PromptTokens | AnswerTokens | Text | Thinking | ToolCalls | Heartbeat | Ended | Failed
