"""Generation parameters and server limits: typed, validated, with units and ranges."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from aiochatstream.constraint import Constraint
from aiochatstream.errors import InvalidValue
from aiochatstream.validation import STRICT, alternatives, describe_argument, validated

DEFAULT_CONTEXT_LEN = 2048

WireFormat = Literal["text", "sse", "json", "chatstream", "chatstream-older"]
"""Format of an answer."""

MAX_LOGIT_BIASES = 300
MAX_TEMPLATE_KWARGS = 32
MAX_TEMPLATE_KWARGS_BYTES = 8192
MAX_TEMPLATE_KWARGS_DEPTH = 16
"""Maximum number of objects and lists within each other."""

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

THINKING_VARIABLES = frozenset({"enable_thinking", "thinking", "reasoning_effort"})
"""Variables of chat templates that switch thoughts: two that are true or false, and one with levels."""


def _limit_logit_biases(value: Any) -> Any:
    """Raise ValueError for too many entries before pydantic validates each, which would block the event loop."""
    if isinstance(value, Sized) and len(value) > MAX_LOGIT_BIASES:
        raise ValueError("too many entries")
    return value


def _check_template_kwargs(value: dict[str, Any]) -> dict[str, Any]:
    """Raise ValueError for too many or invalid names, and for values that are not JSON, too large or too deep."""
    if len(value) > MAX_TEMPLATE_KWARGS or not all(map(IDENTIFIER.fullmatch, value)):
        raise ValueError("invalid names")
    if _is_deeper(value, MAX_TEMPLATE_KWARGS_DEPTH):
        raise ValueError("too deep")
    try:
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except (ValueError, TypeError, RecursionError):
        raise ValueError("not JSON") from None
    if size > MAX_TEMPLATE_KWARGS_BYTES:
        raise ValueError("too large")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    """Return True if ``value`` consists of more than ``depth`` objects and lists within each other."""
    if not isinstance(value, dict | list | tuple):
        return False
    items = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(item, depth - 1) for item in items)


def int_from_text(value: Any) -> Any:
    """Return the integer that an object's key or a query parameter spells; any other value unchanged."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value


def bool_from_text(value: Any) -> Any:
    """Return the bool that a query parameter spells; any other value unchanged."""
    return {"true": True, "1": True, "false": False, "0": False}.get(value, value) if isinstance(value, str) else value


# Each range is defined once. An error quotes its description: "field: must be <description>."
MAX_NEW_TOKENS = 1_000_000
MaxNewTokens = Annotated[
    int, Field(ge=1, le=MAX_NEW_TOKENS, description=f"a whole number of tokens from 1 to {MAX_NEW_TOKENS}")
]
Temperature = Annotated[float, Field(ge=0, le=2, description="a number from 0 (greedy) to 2")]
TopK = Annotated[int, Field(ge=0, le=1000, description="a whole number from 0 (off) to 1000")]
TopP = Annotated[float, Field(ge=0, le=1, description="a number from 0 (greedy) to 1 (off)")]
MinP = Annotated[float, Field(ge=0, le=1, description="a number from 0 (off) to 1")]
TypicalP = Annotated[float, Field(gt=0, le=1, description="a number above 0, up to 1 (off)")]
RepetitionPenalty = Annotated[
    float,
    Field(ge=0, le=10, description="a number from 0.01 to 10, 1 is off; with subtractive from 0 to 10, 0 is off"),
]
RepetitionPenaltyMethod = Annotated[
    Literal["multiplicative", "subtractive"], Field(description="'multiplicative' or 'subtractive'")
]
CountPenalty = Annotated[float, Field(ge=-2, le=2, description="a number from -2 to 2; 0 is off")]
NoRepeatNgramSize = Annotated[int, Field(ge=0, le=100, description="a whole number of tokens from 0 (off) to 100")]
LogitBias = Annotated[
    dict[
        Annotated[int, Field(ge=0, le=2**31 - 1), BeforeValidator(int_from_text)],
        Annotated[float, Field(ge=-100, le=100)],
    ],
    BeforeValidator(_limit_logit_biases),
    Field(
        max_length=MAX_LOGIT_BIASES,
        description=f"an object of up to {MAX_LOGIT_BIASES} token ids with numbers from -100 to 100",
    ),
]
Logprobs = Annotated[int, Field(ge=0, le=20, description="a whole number of tokens from 0 to 20")]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1, description="a whole number from 0 to 2**63 - 1")]
StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=128)]],
    Field(max_length=16, description="a list of up to 16 strings of 1 to 128 characters"),
]
ThinkingLevel = Literal["off", "low", "medium", "high", "auto"]
THINKING_LEVELS: tuple[ThinkingLevel, ...] = get_args(ThinkingLevel)
Thinking = Annotated[ThinkingLevel, Field(description="'off', 'low', 'medium', 'high' or 'auto'")]
EFFORT_LEVELS: Mapping[str, ThinkingLevel] = {
    "none": "off",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
}
"""Levels of ``thinking`` by OpenAI's efforts."""
ChatTemplateKwargs = Annotated[
    dict[str, Any],
    AfterValidator(_check_template_kwargs),
    Field(
        description=f"an object of up to {MAX_TEMPLATE_KWARGS} variables with JSON values, of at most "
        f"{MAX_TEMPLATE_KWARGS_BYTES} bytes in total and {MAX_TEMPLATE_KWARGS_DEPTH} levels deep"
    ),
]
MaxThinkingTokens = Annotated[int, Field(ge=0, le=1_000_000, description="a whole number of tokens from 0 to 1000000")]
Flag = Annotated[bool, Field(description="true or false")]
Seconds = Annotated[float, Field(gt=0, le=86_400, description="a number of seconds above 0, up to 86400")]


class ParamOverrides(BaseModel):
    """Parameters that a request or a user sets. A missing or null field keeps the server's value.

    max_new_tokens: maximum length of the answer in tokens, up to the server's own ``max_new_tokens``.
    temperature: 0 (greedy decoding) to 2.
    top_k: number of most likely tokens to sample from, 1 to 1000; 0 is off.
    top_p: probability mass of the most likely tokens to sample from, 0 (greedy decoding) to 1 (off).
    min_p: minimum probability of a token relative to the most likely one, 0 (off) to 1;
        https://arxiv.org/abs/2407.01082.
    typical_p: probability mass for locally typical sampling, above 0, up to 1 (off); https://arxiv.org/abs/2202.00666.
    repetition_penalty: penalty for tokens that the prompt or the answer already contains, up to 10.
    repetition_penalty_method: ``multiplicative`` divides positive logits by the penalty and multiplies negative ones
        by it (Keskar et al. 2019, https://arxiv.org/abs/1909.05858); the penalty is at least 0.01, and 1 is off.
        ``subtractive``, chatstream's second method, subtracts the penalty from the logits; the penalty is at least 0,
        and 0 is off.
    presence_penalty: subtracted once from the logits of tokens that the answer contains, -2 to 2; 0 is off (OpenAI).
    frequency_penalty: subtracted once per occurrence in the answer, -2 to 2; 0 is off (OpenAI).
    no_repeat_ngram_size: length of the token sequences that must not occur twice in prompt and answer, up to 100;
        0 is off.
    logit_bias: values from -100 to 100 to add to the logits of up to 300 token ids; -100 bans a token, 100 bans all
        others.
    seed: 0 to 2**63 - 1. The same seed and prompt reproduce an answer; in half precision only in the same batch.
    stop: up to 16 strings that end the answer and are not part of it.
    ignore_eos: continue after the end-of-sequence token, to exactly ``max_new_tokens`` tokens (for load tests).
    thinking: ``off``, ``low``, ``medium`` or ``high``, for models whose chat template has a switch for thoughts before
        the answer; ``auto`` is the template's default. Templates that know only on and off use on for all levels.
    chat_template_kwargs: variables of the model's chat template, up to 32 names with JSON values, 8192 bytes in total
        and 16 levels deep; in addition to the server's own. A variable that switches thoughts takes precedence over
        ``thinking``.
    max_thinking_tokens: maximum length of a thought in tokens, after which it is closed and the answer begins, up to
        the server's own ``max_thinking_tokens``.
    """

    model_config = STRICT

    max_new_tokens: MaxNewTokens | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    typical_p: TypicalP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    repetition_penalty_method: RepetitionPenaltyMethod | None = None
    presence_penalty: CountPenalty | None = None
    frequency_penalty: CountPenalty | None = None
    no_repeat_ngram_size: NoRepeatNgramSize | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: StopStrings | None = None
    ignore_eos: Flag | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    max_thinking_tokens: MaxThinkingTokens | None = None


ParamSource = Literal["user", "app", "model", "default"]
"""Origin of a parameter's value: the user, the application, the model's own settings, or a default of this package."""

Range = tuple[float, float]
"""Minimum and maximum, both inclusive."""

ABOVE_ZERO = 0.01
"""Minimum to report for ranges that exclude 0."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ParamLimits:
    """Values that a server allows in requests; None allows all.

    ::

        ParamLimits(temperature=(0, 1), top_k=(1, 500), thinking=("off", "low"))

    Numbers have a range (minimum, maximum) within the range of :class:`ParamOverrides`. The maximum of
    ``max_new_tokens`` is always the server's own value. Raises ValueError that names the parameter.

    thinking: levels that requests may choose. ``chat_template_kwargs`` must then not switch thoughts.
    chat_template_kwargs: names that requests may set; ``()`` for none.
    """

    temperature: Range | None = None
    top_k: Range | None = None
    top_p: Range | None = None
    min_p: Range | None = None
    typical_p: Range | None = None
    repetition_penalty: Range | None = None
    presence_penalty: Range | None = None
    frequency_penalty: Range | None = None
    no_repeat_ngram_size: Range | None = None
    thinking: tuple[ThinkingLevel, ...] | None = None
    chat_template_kwargs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, limits in self.items():
            if not isinstance(limits, tuple) or len(limits) != 2:
                raise ValueError(f"{name}: must be (minimum, maximum), not {limits!r}.")
            for bound in limits:
                validated(ParamOverrides, {name: bound})
            if None in limits or limits[0] > limits[1]:
                raise ValueError(f"{name}: must be (minimum, maximum), not {limits!r}.")
        levels, names = self.thinking, self.chat_template_kwargs
        if levels is not None and not (isinstance(levels, tuple) and levels and set(levels) <= set(THINKING_LEVELS)):
            raise ValueError(f"thinking: must be a tuple of levels from {', '.join(THINKING_LEVELS)}, not {levels!r}.")
        if names is not None and not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
            raise ValueError(f"chat_template_kwargs: must be a tuple of names, not {names!r}.")

    @classmethod
    def of(
        cls, param_limits: ParamLimits | Mapping[str, Sequence[Any]] | None, defaults: GenerationParams
    ) -> ParamLimits:
        """Return the limits that ChatStream's argument ``param_limits`` specifies.

        :param defaults: the server's own parameters, which the limits must include.

        Raise ValueError that names the parameter.
        """
        try:
            limits = param_limits if isinstance(param_limits, cls) else cls._from_mapping(param_limits or {})
            for name, (minimum, maximum) in limits.items():
                default = getattr(defaults, name)
                if not minimum <= default <= maximum:
                    raise ValueError(
                        f"{name}: the range {minimum} to {maximum} must include the server's default, {default}."
                    )
            if limits.thinking is not None and defaults.thinking not in limits.thinking:
                raise ValueError(
                    f"thinking: {', '.join(limits.thinking)} must include the server's default, {defaults.thinking}."
                )
        except ValueError as error:
            raise ValueError(f"param_limits: {error}") from None
        return limits

    @classmethod
    def _from_mapping(cls, param_limits: Any) -> ParamLimits:
        if not isinstance(param_limits, Mapping):
            raise ValueError(f"must be a mapping of names to (minimum, maximum), not {param_limits!r}.")
        for name in param_limits:
            if name not in LIMITED:
                raise ValueError(f"unknown parameter {name!r}; choose from {', '.join(LIMITED)}.")
        return cls(**{name: tuple(pair) if isinstance(pair, list) else pair for name, pair in param_limits.items()})

    def items(self) -> list[tuple[str, Range]]:
        """Return the names and ranges of the limited numbers."""
        pairs = ((name, getattr(self, name)) for name in NUMBERS)
        return [(name, limits) for name, limits in pairs if limits is not None]

    def ranges(self, defaults: GenerationParams) -> dict[str, Range]:
        """Return the range of every numeric parameter of requests, by name.

        :param defaults: the server's own parameters.
        """
        ranges = dict(_full_ranges())
        if defaults.repetition_penalty_method == "multiplicative":
            ranges["repetition_penalty"] = (ABOVE_ZERO, ranges["repetition_penalty"][1])
        return {"max_new_tokens": (1, defaults.max_new_tokens), **ranges, **dict(self.items())}

    def check_template_arguments(self, override: ParamOverrides, prefix: str) -> None:
        """Raise :class:`~aiochatstream.errors.InvalidValue` for ``thinking`` or a variable that is not allowed.

        :param prefix: prefix of the parameter's name in errors.
        """
        if self.thinking is not None and override.thinking not in (None, *self.thinking):
            raise InvalidValue(f"{prefix}thinking: must be {alternatives(self.thinking)} on this server.")
        for name in override.chat_template_kwargs or ():
            field = f"{prefix}chat_template_kwargs.{name}"
            if self.thinking is not None and name in THINKING_VARIABLES:
                raise InvalidValue(f"{field}: must be absent; this server limits thinking.")
            allowed = () if self.chat_template_kwargs is None and self.thinking else self.chat_template_kwargs
            if allowed is not None and name not in allowed:
                names = ", ".join(allowed) or "no variables"
                raise InvalidValue(f"{field}: must be absent; this server allows {names}.")


LIMITED = tuple(field.name for field in dataclasses.fields(ParamLimits))
NUMBERS = tuple(name for name in LIMITED if name not in ("thinking", "chat_template_kwargs"))


@functools.cache
def _full_ranges() -> Mapping[str, Range]:
    """Return the ranges that no server can exceed. Building the schema blocks the event loop for milliseconds."""
    schema = GenerationParams.model_json_schema()["properties"]
    return {name: (schema[name].get("minimum", ABOVE_ZERO), schema[name]["maximum"]) for name in NUMBERS}


class ServerOptions(BaseModel):
    """Base of models that users construct: errors are a ValueError of one sentence that names the field.

    ::

        >>> Limits(max_answer=-1)
        ValueError: max_answer: must be a number of seconds above 0, up to 86400, not -1.
    """

    model_config = ConfigDict(**STRICT, extra="forbid")

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(describe_argument(error, type(self), values)) from None

    # without this, pydantic would call __init__ for fields of other models, and lose the strict rules of JSON
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class GenerationParams(ServerOptions):
    """The parameters of an answer. :class:`ParamOverrides` describes the meanings and ranges not listed here.

    A ChatStream's ``params`` are the defaults of its answers, except for ``seed``, ``stop`` and the fields below them.

    seed: seed of this answer. Unless the request or its user sets one, ChatStream draws it from the sequence that the
        constructor's ``seed`` starts.
    stop: strings that end the answer and are not part of it.
    logprobs: number of most likely tokens to report at each position, 0 to 20, in addition to the chosen
        token's; None reports no logprobs.
    prompt_logprobs: True also reports the logprobs of the prompt's tokens; requires ``logprobs``.
    constraint: the form of the answer; None allows any text.
    """

    max_new_tokens: MaxNewTokens = 256
    temperature: Temperature = 1.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    min_p: MinP = 0.0
    typical_p: TypicalP = 1.0
    repetition_penalty: RepetitionPenalty = 1.0
    repetition_penalty_method: RepetitionPenaltyMethod = "multiplicative"
    presence_penalty: CountPenalty = 0.0
    frequency_penalty: CountPenalty = 0.0
    no_repeat_ngram_size: NoRepeatNgramSize = 0
    logit_bias: LogitBias = Field(default_factory=dict)
    seed: Seed = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    thinking: Thinking = "auto"
    chat_template_kwargs: ChatTemplateKwargs = Field(default_factory=dict)
    max_thinking_tokens: MaxThinkingTokens | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: bool = False
    constraint: Constraint | None = None

    @model_validator(mode="after")
    def _check_repetition_penalty(self) -> GenerationParams:
        if self.repetition_penalty_method == "multiplicative" and self.repetition_penalty < 0.01:
            raise ValueError("repetition_penalty: must be from 0.01 to 10 with the method 'multiplicative'")
        return self

    def override(
        self,
        *overrides: ParamOverrides | None,
        stop: tuple[str, ...] = (),
        limits: ParamLimits = ParamLimits(),
        vocabulary_size: int | None = None,
        prefix: str = "params.",
    ) -> GenerationParams:
        """Return these parameters with ``overrides`` applied; later overrides take precedence.

        :param stop: stop strings of the prompt class, which apply in addition to the stop strings of the overrides.
        :param limits: values that the server allows.
        :param vocabulary_size: number of the model's token ids; None does not check ``logit_bias``.
        :param prefix: prefix of the parameter's name in errors.

        Raise :class:`~aiochatstream.errors.InvalidValue` if an override is outside the server's limits.
        """
        changes: dict[str, Any] = {}
        thinking, template_kwargs = self.thinking, self.chat_template_kwargs
        for override in filter(None, overrides):
            limits.check_template_arguments(override, prefix)
            changes |= override.model_dump(exclude_none=True)
            thinking, template_kwargs = _merge_template_arguments(thinking, template_kwargs, override)
        changes |= {"thinking": thinking, "chat_template_kwargs": template_kwargs}
        ranges = [*limits.items(), ("max_new_tokens", (1, self.max_new_tokens))]
        if self.max_thinking_tokens is not None:
            ranges.append(("max_thinking_tokens", (0, self.max_thinking_tokens)))
        for name, (minimum, maximum) in ranges:
            if not minimum <= changes.get(name, minimum) <= maximum:
                raise InvalidValue(f"{prefix}{name}: must be from {minimum} to {maximum} on this server.")
        check_token_ids(f"{prefix}logit_bias", changes.get("logit_bias", ()), vocabulary_size)
        changes["stop"] = (*stop, *changes.get("stop", ()))
        try:
            return self.with_values(changes)
        except ValueError as error:  # values that exclude each other
            raise InvalidValue(f"{prefix}{error}") from None

    def with_values(self, changes: Mapping[str, Any]) -> GenerationParams:
        """Return these parameters with ``changes``. Values that nobody has set stay out of ``model_fields_set``.

        Raise ValueError that names a parameter.
        """
        params = GenerationParams(**{**dict(self), **changes})
        params.model_fields_set.intersection_update({*self.model_fields_set, *changes})
        return params


def _merge_template_arguments(
    thinking: ThinkingLevel, template_kwargs: dict[str, Any], override: ParamOverrides
) -> tuple[ThinkingLevel, dict[str, Any]]:
    """Return ``thinking`` and ``template_kwargs`` with ``override`` applied.

    Its switch of thoughts, a level or a variable, replaces both of the other's.
    """
    if override.thinking not in (None, "auto"):
        template_kwargs = {name: value for name, value in template_kwargs.items() if name not in THINKING_VARIABLES}
    thinking = override.thinking or thinking
    if THINKING_VARIABLES & (override.chat_template_kwargs or {}).keys():
        thinking = "auto"
    return thinking, template_kwargs | (override.chat_template_kwargs or {})


ANSWER_PARAMS = ("seed", "stop", "logprobs", "prompt_logprobs", "constraint")
"""Fields of GenerationParams that only requests set, one answer at a time."""


def check_token_ids(field: str, token_ids: Iterable[int], vocabulary_size: int | None) -> None:
    """Raise :class:`~aiochatstream.errors.InvalidValue` that names ``field`` if the model does not have a token id.

    :param vocabulary_size: None allows all token ids.
    """
    largest = max(token_ids, default=0)
    if vocabulary_size is not None and largest >= vocabulary_size:
        raise InvalidValue(f"{field}: token id {largest} is out of range; the vocabulary has {vocabulary_size} tokens.")


class Capacity(ServerOptions):
    """Number of answers and requests that a server accepts at a time.

    num_of_concurrent_executions: answers that are generated concurrently, 1 to 100000; at most 1024 by an engine that
        needs a thread for each. None is the capacity that an asynchronous engine has of its own, or 2.
    max_queue_size: requests that may wait for a slot, 0 to 100000.
    """

    num_of_concurrent_executions: (
        Annotated[int, Field(ge=1, le=100_000, description="a whole number from 1 to 100000")] | None
    ) = None
    max_queue_size: Annotated[int, Field(ge=0, le=100_000, description="a whole number from 0 to 100000")] = 5


class Limits(ServerOptions):
    """Limits of a server. Times are in seconds, above 0, up to 86400.

    context_len: maximum length of prompt and answer together, 16 to 10000000 tokens; None is the model's own limit, at
        most 2048, and ``max`` the model's own limit as far as the memory allows.
    fill_context: True lets an answer fill the context: ``max_new_tokens``, which the server's parameters must not set,
        is what the prompt leaves. Old turns are dropped to leave a quarter of the context.
    strict_max_tokens: True refuses requests to OpenAI's API that ask for more tokens than the server or the context
        allows; False shortens their answers.
    max_queue_wait: maximum time in the queue; the request is then refused as by a full queue.
    max_answer: maximum time to generate an answer; it then ends with finish reason ``length``.
    body_timeout: maximum time to receive a request's body; one second more for each 64 KiB beyond the first MiB.
    write_timeout: maximum time that a client may leave a full send buffer unread before it is disconnected.
    shutdown_timeout: time that running answers have to finish at shutdown. Below gunicorn's ``graceful_timeout``.
    max_request_bytes: maximum size of a request's body, 1024 to 2**30 bytes. The app's ``client_max_size`` also
        applies.
    overload_status: HTTP status of requests that a full queue refuses, 503 or 429.
    """

    context_len: (
        Annotated[
            int, Field(ge=16, le=10_000_000, description="a whole number of tokens from 16 to 10000000, or 'max'")
        ]
        | Literal["max"]
        | None
    ) = None
    fill_context: Flag = False
    strict_max_tokens: Flag = False
    max_queue_wait: Seconds = 60.0
    max_answer: Seconds = 300.0
    body_timeout: Seconds = 30.0
    write_timeout: Seconds = 30.0
    shutdown_timeout: Seconds = 20.0
    max_request_bytes: Annotated[
        int, Field(ge=1024, le=1 << 30, description="a number of bytes from 1024 to 2**30")
    ] = 1 << 20
    overload_status: Annotated[Literal[503, 429], Field(description="503 or 429")] = 503
