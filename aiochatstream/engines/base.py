"""The contract that every way of making text keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

from aiochatstream.errors import InvalidValue
from aiochatstream.params import GenerationParams

FinishReason = Literal["stop", "length", "cancelled"]

StepKind = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an answer is to be made for.

    messages: dicts of role (system, user, assistant) and content, the newest last: the user's, or where the answer is
        to be continued what it already says.
    token_ids: the same as the model reads it; empty for an engine without a tokenizer.
    continued: whether the new text goes on from the last of these, and does not begin one of its own: the answer
        already says something, or a bare text is to be completed.
    owner: whose it is, for an engine that keeps what it computed apart by user; tagged with the kind of owner, as
        ``account:anna`` or ``session:...``, so that no two kinds can be taken for one another.
    shared: the number of tokens at the beginning that are the server's own words, the same for all owners.
    """

    messages: list[dict[str, str]]
    token_ids: list[int]
    continued: bool = False
    owner: str = ""
    shared: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model itself found a token: of its own distribution, before biases, penalties and temperature.

    logprob: the natural logarithm of its probability.
    top: the likeliest tokens at this place and their logprobs, as many as :attr:`GenerationParams.logprobs` says.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """One step of an answer: the new text (may be empty: half a character waits for its other half) and tokens.

    cached_tokens: how many of the prompt's were not computed again; told once.
    prompt_tokens: how many the prompt has, from an engine that knows it but has no tokenizer; told once.
    logprobs: one for each of ``token_ids`` where the parameters ask for them, else none. Those of the prompt's tokens
        come before, in deltas without ``token_ids``; the first one, which nothing precedes, has the logprob 0.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    prompt_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class Engine(ABC):
    """Makes answers. Its methods block and are called in worker threads only, never on the event loop."""

    tokenizer: Any = None
    """The HuggingFace tokenizer behind :attr:`Prompt.token_ids`, known after :meth:`load`; None where there is none."""

    max_context_len: int | None = None
    """The most tokens that prompt and answer may have together, where the engine knows."""

    vocabulary: int | None = None
    """How many token ids the model has, known after :meth:`load`, where there is a model."""

    on_step: Callable[[StepKind, float], None] = staticmethod(lambda kind, seconds: None)
    """To be told of each forward pass, in any thread: its kind and the seconds that it took. Set by ChatStream."""

    loads_slowly = False
    """True lets the application start while :meth:`load` still runs; requests then get 503 ``starting``."""

    @property
    def stopped(self) -> bool:
        """True if an error has ended the generation of answers: the server is then not ready any more."""
        return False

    def load(self, slots: int, context_len: int) -> None:  # noqa: B027 - not every engine has something to load
        """Get ready to answer. Called in a thread when the application starts.

        :param slots: answers that are made at the same time.
        :param context_len: tokens that prompt and answer may have together.
        """

    def close(self) -> None:  # noqa: B027
        """Give back what :meth:`load` took. Called when the application ends, also where it took nothing."""

    def share(self, token_ids: list[int]) -> None:  # noqa: B027
        """Get ready for prompts that begin with ``token_ids``, the server's own words before every conversation.

        Called in a thread after :meth:`load`, of an engine with a tokenizer.
        """

    def forget(self, owner: str) -> None:  # noqa: B027
        """Drop what is kept of the prompts of ``owner`` before the next one begins. Returns at once, in any thread."""

    def figures(self) -> dict[str, float]:
        """Figures for /metrics, now: gauges, and counters whose names end in ``_total``."""
        return {}

    def gpu_memory(self) -> list[tuple[int, int, int]]:
        """The GPUs that this process sees: index, bytes in all, bytes in use."""
        return []

    def describe(self) -> dict[str, str]:
        """What there is to tell of it: model, device, dtype."""
        return {}

    def check(self, params: GenerationParams) -> None:
        """Refuse what no answer can be made with. Called for each answer before it is begun, in a thread.

        Raises :class:`~aiochatstream.errors.InvalidValue`; here, for all that an engine need not be able to do.
        """
        if params.logprobs is not None:
            raise InvalidValue("logprobs: this engine cannot tell them.")
        if params.constraint is not None:
            raise InvalidValue("constraint: this engine cannot follow one.")

    def checks_quickly(self, params: GenerationParams) -> bool:
        """Return whether :meth:`check` takes only milliseconds for ``params``. Called on the event loop.

        Other checks wait for one another.
        """
        return params.constraint is None

    @abstractmethod
    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        """Yield the answer, at least one Delta a step, the last one with a finish reason.

        Called by as many threads at once as there are slots. Closing the generator cancels; as that can happen only
        at a ``yield``, a long job (a prefill, say) yields an empty Delta between its parts.
        """
