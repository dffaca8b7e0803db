"""What happens while an answer is made, from the queue to its end. Ended or Failed comes last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from aiochatstream.conversations.user import SaveResult
from aiochatstream.engines import FinishReason, TokenLogprob
from aiochatstream.errors import ChatStreamError


class Usage(NamedTuple):
    """Tokens: read, of those not computed again, and written."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Timing(NamedTuple):
    """Seconds: in the queue, to the first text (None: there was none), and in all, since the request was accepted."""

    queue_s: float
    ttft_s: float | None
    total_s: float


@dataclass(frozen=True, slots=True)
class Queued:
    """The turn waits; ``position`` 1 is next."""

    position: int


@dataclass(frozen=True, slots=True)
class Started:
    """The turn has its slot."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer; the text may be empty where logprobs were asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A tick of :meth:`~aiochatstream.runtime.turns.RunningTurn.ticking`."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is over, saved, and its slot is free. Nothing follows. ``kept`` is None where nothing was to be."""

    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    kept: SaveResult | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no whole answer. Nothing follows."""

    error: ChatStreamError
    kept: SaveResult | None = None


Event = Queued | Started | Text | Heartbeat | Ended | Failed
