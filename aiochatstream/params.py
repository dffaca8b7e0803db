"""How one answer is generated, and the server's limits: validated, with units and ranges."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sized
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from aiochatstream.constraint import Constraint
from aiochatstream.errors import InvalidValue

WireFormat = Literal["text", "sse", "json", "chatstream", "chatstream-older"]

STRICT = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


MOST_BIASES = 300


def refuse_too_many(value: Any) -> Any:
    """Before each is looked at, which would hold the event loop."""
    if isinstance(value, Sized) and len(value) > MOST_BIASES:
        raise ValueError("too many")
    return value


def number_of_text(value: Any) -> Any:
    """Where all is text: the keys of JSON objects, and query parameters."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value


def flag_of_text(value: Any) -> Any:
    """Return the bool that a query parameter spells, and anything else as it is."""
    return {"true": True, "1": True, "false": False, "0": False}.get(value, value) if isinstance(value, str) else value


# One place for each range. The description is the sentence that a wrong value is answered with.
MaxNewTokens = Annotated[int, Field(ge=1, le=1_000_000, description="a whole number of tokens from 1 to 1000000")]
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
        Annotated[int, Field(ge=0, le=2**31 - 1), BeforeValidator(number_of_text)],
        Annotated[float, Field(ge=-100, le=100)],
    ],
    BeforeValidator(refuse_too_many),
    Field(
        max_length=MOST_BIASES, description=f"an object of up to {MOST_BIASES} token ids with numbers from -100 to 100"
    ),
]
Logprobs = Annotated[int, Field(ge=0, le=20, description="a whole number of tokens from 0 to 20")]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1, description="a whole number from 0 to 2**63 - 1")]
StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=128)]],
    Field(max_length=16, description="a list of up to 16 strings of 1 to 128 characters"),
]
Flag = Annotated[bool, Field(description="true or false")]
Seconds = Annotated[float, Field(gt=0, le=86_400, description="a number of seconds above 0, up to 86400")]


NO_LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType({})


class ParamOverrides(BaseModel):
    """What a request may set for its one answer. What is absent or null keeps the server's value.

    max_new_tokens: tokens that the answer may have, at most the server's own ``max_new_tokens``.
    temperature: 0 takes the likeliest token always.
    top_k: draw from the k likeliest tokens.
    top_p: draw from the likeliest tokens that together reach this probability; 0 takes the likeliest token always.
    min_p: leave out what is less likely than this part of the likeliest, https://arxiv.org/abs/2407.01082.
    typical_p: draw from the tokens nearest to the expected surprise, that together reach this probability: locally
        typical sampling, https://arxiv.org/abs/2202.00666.
    repetition_penalty: makes tokens of prompt and answer so far less likely.
    repetition_penalty_method: ``multiplicative`` divides a logit above 0 by the penalty and multiplies one below by it
        (Keskar et al. 2019, https://arxiv.org/abs/1909.05858), so 1 is off. ``subtractive``, chatstream's other one,
        takes the penalty itself from the logit, so 0 is off and 1 is not.
    presence_penalty: is taken from the logits of tokens that the answer has (OpenAI).
    frequency_penalty: is taken from them as many times as the answer has the token (OpenAI).
    no_repeat_ngram_size: no sequence of so many tokens comes twice in prompt and answer.
    logit_bias: is added to the logits of these token ids; -100 bans one, 100 all others.
    seed: the same seed and prompt give the same answer again, in half precision only in the same company.
    stop: strings that end the answer and are not shown.
    ignore_eos: do not stop at the end-of-sequence token (for load tests: exactly max_new_tokens tokens).
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


class GenerationParams(BaseModel):
    """The parameters of one answer, complete. Ranges and meanings as in :class:`ParamOverrides`.

    logprobs: tell how likely each token was, and so many of the likeliest at its place; None tells nothing.
    prompt_logprobs: with ``logprobs``, also those of the prompt's tokens.
    constraint: the form that the answer is to have.
    """

    model_config = STRICT

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
    logprobs: Logprobs | None = None
    prompt_logprobs: bool = False
    constraint: Constraint | None = None

    @model_validator(mode="after")
    def _must_not_divide_by_nothing(self) -> GenerationParams:
        if self.repetition_penalty_method == "multiplicative" and self.repetition_penalty < 0.01:
            raise ValueError("repetition_penalty: must be from 0.01 to 10 with the method 'multiplicative'")
        return self

    def override(
        self,
        *overrides: ParamOverrides | None,
        stop: tuple[str, ...] = (),
        limits: Mapping[str, tuple[float, float]] = NO_LIMITS,
        vocabulary: int | None = None,
        where: str = "params.",
    ) -> GenerationParams:
        """These defaults with what a user and one request say (the last one counts most), within the limits.

        :param stop: the prompt's own stop strings, which hold whatever the request says.
        :param limits: the least and the most of parameters, by name, where the server allows less than anyone may.
        :param vocabulary: how many token ids the model has, where that is known.
        :param where: what goes before a parameter's name in an error.

        Raises :class:`~aiochatstream.errors.InvalidValue` where a limit of the server is passed.
        """
        changes: dict[str, Any] = {}
        for one in overrides:
            changes |= {} if one is None else one.model_dump(exclude_none=True)
        for name, (least, most) in {**limits, "max_new_tokens": (1, self.max_new_tokens)}.items():
            if not least <= changes.get(name, least) <= most:
                raise InvalidValue(f"{where}{name}: must be from {least} to {most} on this server.")
        highest = max(changes.get("logit_bias") or [0])
        if vocabulary is not None and highest >= vocabulary:
            raise InvalidValue(f"{where}logit_bias: {highest} is none of the model's {vocabulary} token ids.")
        changes["stop"] = (*stop, *changes.get("stop", ()))
        try:
            return GenerationParams(**{**dict(self), **changes})
        except ValidationError as error:  # values that do not go together
            raise InvalidValue(where + describe(error, GenerationParams)) from None


class Limits(BaseModel):
    """What a server allows itself and its clients. Times in seconds.

    num_of_concurrent_executions: answers that are generated at the same time; also the executor's threads.
    max_queue_size: requests that wait for a slot; 0 lets none wait.
    context_len: tokens that prompt and answer may have together; None is the model's own, at most 2048.
    max_queue_wait: how long a request waits for its slot before it is refused with 503.
    max_answer: how long an answer may take before it is ended as with ``max_new_tokens``.
    body_timeout: how long a request's body may take to arrive.
    write_timeout: how long a client may take nothing before it counts as gone.
    shutdown_timeout: how long running answers may go on when the server is told to stop.
    max_request_bytes: the longest body; the app's own ``client_max_size`` holds, too.
    wire_format: what a client gets that asks for nothing else.
    overload_status: the status of ``too_many_requests``.
    """

    model_config = STRICT

    num_of_concurrent_executions: Annotated[int, Field(ge=1, le=1024, description="a whole number from 1 to 1024")]
    max_queue_size: Annotated[int, Field(ge=0, le=100_000, description="a whole number from 0 to 100000")]
    context_len: (
        Annotated[int, Field(ge=16, le=10_000_000, description="a whole number of tokens from 16 to 10000000")] | None
    )
    max_queue_wait: Seconds
    max_answer: Seconds
    body_timeout: Seconds
    write_timeout: Seconds
    shutdown_timeout: Seconds
    max_request_bytes: Annotated[int, Field(ge=1024, le=1 << 30, description="a number of bytes from 1024 to 2**30")]
    wire_format: Annotated[WireFormat, Field(description="'text', 'sse', 'json', 'chatstream' or 'chatstream-older'")]
    overload_status: Annotated[Literal[503, 429], Field(description="503 or 429")]


def choose_overload_status(overload_status: int | None, too_many_request_as_http_error: bool) -> int:
    """The status of a full queue, by our option and chatstream's. There, False means 200, which nothing here answers.

    Raises ValueError where the two contradict each other.
    """
    if not isinstance(too_many_request_as_http_error, bool):
        raise ValueError("too_many_request_as_http_error: must be true or false.")
    if not too_many_request_as_http_error:
        return 503 if overload_status is None else overload_status
    if overload_status not in (None, 429):
        raise ValueError(
            f"too_many_request_as_http_error: means overload_status=429, but overload_status is {overload_status!r}; "
            f"give one of the two."
        )
    return 429


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], values: dict[str, Any]) -> Model:
    """``model(**values)``. Raises ValueError with a sentence that names the field and the range."""
    try:
        return model(**values)
    except ValidationError as error:
        raise ValueError(describe(error, model)) from None


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """The first error of a validation as one sentence that names the field and the range."""
    first = error.errors(include_url=False, include_context=False)[0]
    schema = _schema_of(model)
    message = first["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be", 1).replace("Field required", "is missing", 1)
    known, sentence = [], message
    node: dict[str, Any] = schema
    for part in first["loc"]:
        inner = _inner(node, part, schema)
        if inner is None:
            break
        node = inner
        known.append(str(part))
        described = [option["description"] for option in _options(node) if "description" in option]
        is_object = "properties" in _resolve(node, schema)
        sentence = f"must be {described[0]}" if described and not is_object else message
    if not known:
        return f"{sentence}."
    names_field = first["type"] == "value_error" and "properties" in _resolve(node, schema)
    return f"{'.'.join(known)}{'.' if names_field else ': '}{sentence}."


@functools.cache
def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Not to be changed. To make it holds the event loop for several milliseconds."""
    return model.model_json_schema()


def _inner(node: dict[str, Any], part: str | int, schema: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of a field of an object, or of an object in a list; None where that is not what ``part`` says."""
    if isinstance(part, str):
        field: dict[str, Any] | None = _resolve(node, schema).get("properties", {}).get(part)
        return field
    for option in _options(node):
        items: dict[str, Any] = option.get("items", {})
        if "properties" in _resolve(items, schema):
            return items
    return None


def _options(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *node.get("anyOf", [])]


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The object schema behind a reference, where the node has one."""
    for option in _options(node):
        if "$ref" in option:
            resolved: dict[str, Any] = schema["$defs"][option["$ref"].rsplit("/", 1)[-1]]
            return resolved
    return node
