"""The interface of engines and the types that they exchange with the runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from aiochatstream.errors import ChatStreamError, InvalidValue
from aiochatstream.params import GenerationParams

FinishReason = Literal["stop", "length", "thinking_length", "cancelled"]
"""End of the answer; maximum length reached in the answer, or while the model was still thinking; stopped."""

StepKind = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of one answer.

    messages: dicts of role (system, user, assistant) and content, the newest last: the user's message, or the
        beginning of an answer that is to be continued. See also :attr:`Engine.reads_messages`.
    token_ids: the same conversation as the model reads it; empty for an engine without a tokenizer.
    continued: True if the new text continues the last message instead of starting a new one: an answer is continued or
        a plain text is completed.
    owner: the user, for an engine that caches prompts per user. Prefixed with the kind of user, for example
        ``account:anna`` or ``session:...``, so that different kinds never collide.
    affinity: equal for the prompts of one conversation, for an engine that distributes prompts: a hash, no text.
    shared_tokens: number of tokens at the beginning that come from the server and are equal for all owners.
    may_shorten: True if an engine without a tokenizer may drop the oldest turns to fit the context: a stored
        conversation, not a client's complete input.
    chat: True if the new text is a message of a chat, in which the model may think and call tools; False for a plain
        text.
    tools: functions that the model may call, as in OpenAI's API. Without any, calls are text.
    """

    messages: list[dict[str, str]]
    token_ids: list[int]
    continued: bool = False
    owner: str = ""
    affinity: str = ""
    shared_tokens: int = 0
    may_shorten: bool = False
    chat: bool = True
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability of a token in the model's own distribution, before biases, penalties and temperature.

    logprob: natural logarithm of the probability.
    top: the most likely tokens at this position and their logprobs; :attr:`GenerationParams.logprobs` is their number.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete call of a tool.

    name: name of the function.
    arguments: a JSON object, as text.
    text: the call as the model wrote it, with its marks: the text to show if the call is not accepted.
    """

    name: str
    arguments: str
    text: str


@dataclass(frozen=True, slots=True)
class Delta:
    """New text and tokens of one step. The text may be empty: an incomplete character is held back.

    Only one of ``text``, ``thinking`` and ``tool_calls`` is not empty, so that a sequence of deltas has their order.

    thinking: text of the model's thoughts, which is not part of the answer.
    tool_calls: calls of tools.
    thinking_tokens: number of ``token_ids`` that belong to thoughts, including their marks.
    tokens: number of new tokens if the engine does not know their ids; else 0, and ``token_ids`` has the number.
    cached_tokens: number of prompt tokens that were loaded from a cache; in one delta of the answer, else 0.
    prompt_tokens: number of prompt tokens by the engine's own count, which replaces the length of the prompt; in one
        delta, else 0.
    logprobs: one entry for each of ``token_ids`` if the parameters request logprobs. The prompt's logprobs come first,
        in deltas without ``token_ids``; the logprob of the first prompt token is 0.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    prompt_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    thinking_tokens: int = 0
    tokens: int = 0

    @property
    def token_count(self) -> int:
        """Number of new tokens."""
        return self.tokens or len(self.token_ids)


class LabelledMetric(NamedTuple):
    """A value for /metrics with labels, for example of one of several servers.

    It is a counter if its name ends in ``_total``, else a gauge.
    """

    name: str
    labels: dict[str, str]
    value: float


class BaseEngine:
    """Interface that :class:`Engine` and :class:`AsyncEngine` share."""

    tokenizer: Any = None
    """HuggingFace tokenizer of :attr:`Prompt.token_ids`, set by :meth:`load`; None for an engine without one."""

    response_template: dict[str, Any] | None = None
    """Template in transformers' format by which the engine reads thoughts and calls of tools, set by :meth:`load`; None
    if both are text."""

    max_context_len: int | None = None
    """Maximum number of tokens of prompt and answer together; None if unknown."""

    kv_cache_tokens: int | None = None
    """Number of tokens for which the engine has memory, of all running answers together, set by :meth:`load`; None for
    no limit. The server starts an answer only when its :meth:`tokens_needed` fit, so a single answer of
    :attr:`max_context_len` must fit."""

    vocab_size: int | None = None
    """Number of the model's token ids, set by :meth:`load`; None if unknown."""

    batch_obstacle: str | None = None
    """Reason why a model's answers are decoded one at a time, set by :meth:`load`; None if they are batched, and for an
    engine without a model."""

    default_params: Mapping[str, Any] = MappingProxyType({})
    """The model's own values of numeric :class:`~aiochatstream.GenerationParams`, set by :meth:`load`. They replace the
    defaults of parameters that nobody sets; lengths have no effect."""

    on_step: Callable[[StepKind, float], None] = staticmethod(lambda kind, seconds: None)
    """Callback after each forward pass, in any thread: its kind and its duration in seconds. Set by ChatStream."""

    owned_by = "aiochatstream"
    """Owner in the list of models, by which a server in front of this one knows what it understands."""

    server_id: str | None = None
    """Random id of an engine that forwards prompts to other servers, by which they detect loops; else None."""

    reads_messages = True
    """False for an engine that does not read :attr:`Prompt.messages`: they are then empty for a plain text that the
    client has sent as token ids."""

    loads_slowly = False
    """True starts the application while :meth:`load` still runs; until then requests get 503 ``starting``."""

    def unavailable(self) -> ChatStreamError | None:
        """Return the error that requests get while the engine cannot answer; None if it can.

        The server is not ready meanwhile. Called on the event loop for each request.
        """
        return None

    def tokens_needed(self, prompt_tokens: int, max_new_tokens: int) -> int:
        """Return the part of :attr:`kv_cache_tokens` that an answer occupies from its start to its end.

        :param prompt_tokens: length of the prompt.
        :param max_new_tokens: maximum length of the answer; 0 if the engine only reads the prompt.
        """
        return prompt_tokens + max_new_tokens

    def share(self, token_ids: list[int]) -> None:
        """Prepare for prompts that begin with ``token_ids``, which the server puts before every conversation.

        Called in a thread after :meth:`load`, for an engine with a tokenizer.
        """

    def forget(self, owner: str) -> None:
        """Drop cached prompts of ``owner`` before the next prompt starts. Returns immediately; thread-safe."""

    def metrics(self) -> dict[str, float]:
        """Return current values for /metrics: gauges, and counters whose names end in ``_total``."""
        return {}

    def labelled_metrics(self) -> list[LabelledMetric]:
        """Return current values for /metrics that have labels. Values of one name have the same labels."""
        return []

    def gpu_memory(self) -> list[tuple[int, int, int]]:
        """Return index, total bytes and used bytes of each GPU that is visible to this process."""
        return []

    def describe(self) -> dict[str, str]:
        """Return properties for display, for example model, device and dtype."""
        return {}

    def check(self, params: GenerationParams) -> None:
        """Raise :class:`~aiochatstream.errors.InvalidValue` if the engine does not support ``params``.

        Called in a thread before each answer. This implementation rejects the optional features.
        """
        if params.logprobs is not None:
            raise InvalidValue("logprobs: not supported by this engine.")
        if params.constraint is not None:
            raise InvalidValue("constraint: not supported by this engine.")

    def checks_quickly(self, params: GenerationParams) -> bool:
        """Return True if :meth:`check` needs only milliseconds for ``params``. Called on the event loop.

        Slow checks run one after another.
        """
        return params.constraint is None


class Engine(BaseEngine, ABC):
    """Generates answers. Its methods may block; only worker threads call them, never the event loop."""

    def load(self, slots: int, context_len: int | None) -> None:
        """Prepare for generation. Called in a thread when the application starts.

        :param slots: maximum number of concurrent answers.
        :param context_len: maximum number of tokens of prompt and answer together; None for the model's own limit, as
            far as the memory allows.
        """

    def close(self) -> None:
        """Release all resources. Called when the application ends, also if :meth:`load` has failed."""

    @abstractmethod
    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        """Yield the answer, at least one Delta per step; the last one has a finish reason.

        Called concurrently by up to ``slots`` threads. Closing the generator cancels the answer. This is possible only
        at a ``yield``, so a long operation such as a prefill yields empty deltas in between.
        """


class AsyncEngine(BaseEngine, ABC):
    """Generates answers on the event loop, which it never blocks: an answer needs no thread."""

    capacity: int | None = None
    """Number of answers that the engine can generate concurrently now; None if it has no limit of its own."""

    on_capacity: Callable[[], None] = staticmethod(lambda: None)
    """Callback on the event loop after a change of :attr:`capacity` or :meth:`unavailable`. Set by ChatStream."""

    other_load: Callable[[str], int] = staticmethod(lambda name: 0)
    """Function that returns the number of answers that other processes run on a server, given its name. Set by
    ChatStream if processes share a queue."""

    def server_load(self) -> Mapping[str, int]:
        """Return the number of answers on each of the engine's servers, by its name."""
        return {}

    async def load(self, slots: int | None, context_len: int | None) -> None:
        """Prepare for generation. Called on the event loop when the application starts.

        :param slots: maximum number of concurrent answers; None for :attr:`capacity`.
        :param context_len: maximum number of tokens of prompt and answer together; None for the model's own limit.
        """

    async def close(self) -> None:
        """Release all resources. Called when the application ends, also if :meth:`load` has failed."""

    @abstractmethod
    def generate(self, prompt: Prompt, params: GenerationParams) -> AsyncGenerator[Delta, None]:
        """Yield the answer; the last delta has a finish reason.

        Cancellation of the task that iterates cancels the answer, at any ``await``.
        """
