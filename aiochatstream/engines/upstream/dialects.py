"""Dialects of servers that speak OpenAI's API: the names of their own fields, and their error codes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from aiochatstream.params import ThinkingLevel

if TYPE_CHECKING:
    from aiochatstream.engines.upstream.session import UpstreamSession

Fields = Mapping[str, Any]
"""Fields of a request."""

STANDARD = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "logit_bias": "logit_bias",
    "seed": "seed",
    "stop": "stop",
}
"""Names of OpenAI's fields, by the names of :class:`~aiochatstream.GenerationParams`."""

SAMPLING: Mapping[str, str] = {
    **STANDARD,
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "ignore_eos": "ignore_eos",
}

ON_LEVELS: tuple[ThinkingLevel, ...] = ("low", "medium", "high")

EFFORT_FIELDS: Mapping[ThinkingLevel, Fields] = {
    "off": {"reasoning_effort": "none"},
    **{level: {"reasoning_effort": level} for level in ON_LEVELS},
}
"""Fields for servers that translate OpenAI's efforts to the variables of their chat template."""

TEMPLATE_SWITCH: Mapping[ThinkingLevel, Fields] = {
    "off": {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
    **{
        level: {"chat_template_kwargs": {"enable_thinking": True, "thinking": True, "reasoning_effort": level}}
        for level in ON_LEVELS
    },
}
"""Fields for servers that pass variables to the chat template, which ignores those that it does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """Names and abilities of one kind of server.

    owners: values of ``owned_by`` in the server's list of models.
    params: names of the fields of parameters. The server supports no others.
    off: values that switch a parameter off, where they differ.
    max_seed: maximum seed.
    max_stops: maximum number of stop strings; None for any number.
    thinking: fields for each level of ``thinking``; empty if there is no switch.
    thinking_budget: name of the field of ``max_thinking_tokens``; None if there is none.
    template_kwargs: True if the server passes ``chat_template_kwargs`` to the chat template.
    continuing: fields that let the model continue the last message, an assistant's; None if it cannot.
    continues_thoughts: True if it also continues such a message that has only thoughts, in ``reasoning_content``.
    token_ids: fields that request the ids of generated tokens; empty if the server does not send them.
    tokenizes: True if ``/tokenize`` counts the tokens of messages.
    cache_salt: name of the field that separates the cached prompts of different users; None if there is none.
    """

    name: str
    owners: tuple[str, ...] = ()
    params: Mapping[str, str] = field(default_factory=STANDARD.copy)
    off: Fields = field(default_factory=dict)
    max_seed: int = 2**63 - 1
    max_stops: int | None = None
    thinking: Mapping[ThinkingLevel, Fields] = field(default_factory=dict)
    thinking_budget: str | None = None
    template_kwargs: bool = False
    continuing: Fields | None = None
    continues_thoughts: bool = False
    token_ids: Fields = field(default_factory=dict)
    tokenizes: bool = False
    cache_salt: str | None = None


CONTINUE_FINAL: Fields = {"continue_final_message": True, "add_generation_prompt": False}

PLAIN = Dialect(name="openai-compatible", max_stops=4)
"""Any other server. Only standard fields are sent, and an answer that breaks off cannot be resumed."""

DIALECTS = (
    Dialect(
        name="aiochatstream",
        owners=("aiochatstream",),
        params=SAMPLING,
        max_stops=16,
        thinking=EFFORT_FIELDS,
        thinking_budget="max_thinking_tokens",
        template_kwargs=True,
        continuing={"continue_final_message": True},
        continues_thoughts=True,
        token_ids={"return_token_ids": True},
        tokenizes=True,
        cache_salt="cache_salt",
    ),
    Dialect(
        name="vllm",
        owners=("vllm",),
        params=SAMPLING,
        off={"top_k": -1},
        thinking=TEMPLATE_SWITCH,
        thinking_budget="thinking_token_budget",
        template_kwargs=True,
        continuing=CONTINUE_FINAL,
        token_ids={"return_token_ids": True},
        tokenizes=True,
        cache_salt="cache_salt",
    ),
    Dialect(
        name="sglang",
        owners=("sglang",),
        params=SAMPLING,
        off={"top_k": -1},
        thinking=TEMPLATE_SWITCH,
        template_kwargs=True,
        continuing={"continue_final_message": True},
        token_ids={"return_token_ids": True},
        cache_salt="cache_salt",
    ),
    Dialect(
        name="llama.cpp",
        owners=("llamacpp",),
        params={**SAMPLING, "repetition_penalty": "repeat_penalty"},
        max_seed=2**32 - 2,  # 2**32 - 1 is a random seed
        thinking=TEMPLATE_SWITCH,
        thinking_budget="thinking_budget_tokens",
        template_kwargs=True,
        continuing={},  # it continues the last message if that is an assistant's
    ),
    Dialect(
        name="openai",
        owners=("openai", "openai-internal", "system"),
        params={**STANDARD, "max_new_tokens": "max_completion_tokens"},
        max_stops=4,
    ),
    PLAIN,
)


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of a server.

    model: name of its model in requests.
    context_len: maximum number of tokens of prompt and answer together; None if the server does not report it.
    """

    dialect: Dialect
    model: str
    context_len: int | None


async def probe(session: UpstreamSession, model: str | None) -> Facts:
    """Return the properties of a server that serves ``model``, or its only model if that is None.

    Raise aiohttp.ClientResponseError for a status other than 200, ValueError with a sentence if the response is not a
    list of models or lacks ``model``, and aiohttp.ClientError, OSError or TimeoutError if the connection fails.
    """
    async with session.request("GET", "/v1/models", raise_for_status=True) as response:
        return read_models(await session.read_json(response), model)


def read_models(body: Any, name: str | None = None) -> Facts:
    """Return the properties of a server from the body of its ``GET /v1/models``.

    :param name: name of the model; None for the only one. vLLM also lists LoRA adapters, which have a ``parent``.

    Raise ValueError with a sentence for another body, and if there is no such model, or more than one.
    """
    entries = body.get("data") if isinstance(body, dict) else None
    models = entries if isinstance(entries, list) else []
    models = [model for model in models if isinstance(model, dict) and isinstance(model.get("id"), str)]
    if not models:
        raise ValueError("GET /v1/models: must return a list of models.")
    if name is not None:
        chosen = [model for model in models if model["id"] == name]
    else:
        chosen = [model for model in models if not model.get("parent")] or models
    if not chosen:
        raise ValueError(f"model: the server does not list {name!r}.")
    if len(chosen) > 1:
        raise ValueError(f"model: must name one of the server's {len(chosen)} models.")
    model = chosen[0]
    dialect = next((dialect for dialect in DIALECTS if model.get("owned_by") in dialect.owners), PLAIN)
    return Facts(dialect, model["id"], _context_len(model))


def _context_len(model: Mapping[str, Any]) -> int | None:
    meta = model.get("meta")
    lengths = (model.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None)
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


Refusal = Literal["too_long", "busy", "draining", "down", "error", "broken_off", "loop", "configuration", "request"]
"""Meaning of an error: the prompt exceeds the context; all slots are busy; the server shuts down, or cannot answer at
present; the server or the request has caused an error; a server behind it has failed in this answer; servers are each
other's upstream; a wrong key, path or model name; any other error of the request."""

TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error", "input_tokens"}
TOO_LONG = re.compile(
    r"context (length|size|window)|longer than the model|maximum (prompt|input) length|max_model_len"
    r"|(prompt|input|messages?) .{0,40}too long|reduce the length of the (messages|input|prompt)",
    re.IGNORECASE,
)
DOWN_CODES = {"starting", "engine_stopped", "upstream_unavailable", "unavailable_error"}
EVENT_STATUSES = {
    "context_length_exceeded": 400,
    "too_many_requests": 503,
    "draining": 503,
    "loop_detected": 508,
}
"""HTTP statuses of error codes in streams, whose own status is always 200; others mean that the server failed."""


def read_refusal(status: int, body: Any) -> Refusal:
    """Return the meaning of an error response.

    :param status: HTTP status from 400.
    :param body: decoded JSON of the response; None if it is not JSON.
    """
    error = body.get("error", body) if isinstance(body, dict) else {}
    error = error if isinstance(error, dict) else {"message": str(error)}
    codes = {code for name in ("code", "type", "param") if isinstance(code := error.get(name), str)}
    if status in (400, 413, 422):
        is_too_long = codes & TOO_LONG_CODES or TOO_LONG.search(str(error.get("message", "")))
        return "too_long" if is_too_long else "request"
    if status == 508:
        return "loop"
    if status in (401, 403, 404):
        return "configuration"
    if status == 429:
        return "busy"
    if "upstream_failed" in codes:
        return "broken_off"
    if status == 503:
        if "draining" in codes:
            return "draining"
        return "down" if codes & DOWN_CODES else "busy"
    return "error" if status >= 500 else "request"


def read_error_event(body: Any) -> Refusal:
    """Return the meaning of an error that arrives in a stream.

    :param body: decoded JSON of the event.
    """
    code = body.get("error", body).get("code") if isinstance(body.get("error", body), dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else EVENT_STATUSES.get(str(code), 500)
    return read_refusal(status, body)
