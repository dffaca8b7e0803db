"""Requests to upstreams: a prompt and its parameters in the words of a dialect."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from aiochatstream.engines.base import Prompt
from aiochatstream.engines.upstream.dialects import Dialect
from aiochatstream.errors import BadRequest, InvalidValue
from aiochatstream.params import MAX_NEW_TOKENS, GenerationParams

CHAT_PATH = "/v1/chat/completions"
TEXT_PATH = "/v1/completions"

OPTIONAL_PARAMS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "repetition_penalty_method",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "logit_bias",
    "ignore_eos",
)
"""Parameters that a server either supports or refuses, unless they are off."""


def param_fields(params: GenerationParams, dialect: Dialect) -> dict[str, Any]:
    """Return the fields of the parameters that somebody has set; the others are the server's own.

    ``max_new_tokens`` is among them unless it is the maximum: the server's own limit then applies, since many servers
    refuse more than their context. Greedy decoding is ``temperature`` 0: some servers refuse ``top_p`` 0.
    """
    values = {name: getattr(params, name) for name in dialect.params if name in params.model_fields_set}
    if params.max_new_tokens < MAX_NEW_TOKENS:
        values["max_new_tokens"] = params.max_new_tokens
    else:
        values.pop("max_new_tokens", None)
    if values.get("top_p") == 0:
        del values["top_p"]
        values["temperature"] = 0.0
    if values.get("top_k") == 0 and "top_k" in dialect.off:
        values["top_k"] = dialect.off["top_k"]
    if "seed" in values:
        values["seed"] %= dialect.max_seed + 1
    values["stop"] = list(params.stop[: dialect.max_stops])  # the engine itself stops at all of them
    if not values["stop"]:
        del values["stop"]
    if "logit_bias" in values:
        values["logit_bias"] = {str(token_id): bias for token_id, bias in params.logit_bias.items()}
        if not values["logit_bias"]:
            del values["logit_bias"]
    return {dialect.params[name]: value for name, value in values.items()}


def template_fields(params: GenerationParams, dialect: Dialect) -> dict[str, Any]:
    """Return the fields of thoughts and of the chat template."""
    fields = dict(dialect.thinking.get(params.thinking, {}))
    if params.chat_template_kwargs:
        fields["chat_template_kwargs"] = fields.get("chat_template_kwargs", {}) | params.chat_template_kwargs
    if params.max_thinking_tokens is not None and dialect.thinking_budget is not None:
        fields[dialect.thinking_budget] = params.max_thinking_tokens
    return fields


def check_params(params: GenerationParams, dialect: Dialect, *, renders: bool) -> None:
    """Raise :class:`~aiochatstream.errors.InvalidValue` that names a parameter which the server does not support.

    :param renders: True if the server renders the chat template, not this one.
    """
    for name in _unsupported(params, dialect, renders=renders):
        raise InvalidValue(f"{name}: not supported by the model's server.")


def _unsupported(params: GenerationParams, dialect: Dialect, *, renders: bool) -> Iterator[str]:
    for name in OPTIONAL_PARAMS:
        if name in dialect.params or name not in params.model_fields_set:
            continue
        if getattr(params, name) != GenerationParams.model_fields[name].get_default(call_default_factory=True):
            yield name
    if params.max_thinking_tokens is not None and not (renders and dialect.thinking_budget):
        yield "max_thinking_tokens"
    if not renders:
        return
    if params.thinking != "auto" and params.thinking not in dialect.thinking:
        yield "thinking"
    if params.chat_template_kwargs and not dialect.template_kwargs:
        yield "chat_template_kwargs"


def request_of(
    prompt: Prompt,
    params: GenerationParams,
    dialect: Dialect,
    *,
    text: str = "",
    thinking: str = "",
    token_ids: Sequence[int] = (),
) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of a request, without the name of the model.

    :param text: answer so far, which the model continues; for a prompt of messages or text.
    :param thinking: thoughts before that text, or to be continued if there is none.
    :param token_ids: answer so far; for a prompt of token ids.

    Raise :class:`~aiochatstream.errors.BadRequest` if the server cannot continue an answer.
    """
    body: dict[str, Any] = {
        "stream": True,
        "stream_options": {"include_usage": True},
        **param_fields(params, dialect),
        **dialect.token_ids,
    }
    if prompt.token_ids:
        return TEXT_PATH, body | {"prompt": [*prompt.token_ids, *token_ids]}
    if not prompt.chat:
        return TEXT_PATH, body | {"prompt": prompt.messages[-1]["content"] + text}
    messages: list[dict[str, str]] = [*prompt.messages]
    if text or thinking:
        answer = dict(messages.pop()) if prompt.continued else {"role": "assistant", "content": ""}
        answer["content"] += text
        if thinking:
            answer["reasoning_content"] = thinking
        messages.append(answer)
    body |= {"messages": messages, **template_fields(params, dialect)}
    if prompt.continued or text or thinking:
        if dialect.continuing is None:
            raise BadRequest("The model's server cannot continue an answer.")
        body |= dialect.continuing
    return CHAT_PATH, body


def salt_secret(api_keys: Sequence[str]) -> bytes:
    """Return the secret of :func:`cache_salt`: equal on all fronts of servers with the same keys; else random."""
    if not api_keys:
        return secrets.token_bytes(32)
    return hashlib.blake2b("\n".join(api_keys).encode(), person=b"cache salt", digest_size=32).digest()


def cache_salt(owner: str, secret: bytes) -> str:
    """Return a value that differs for each owner, and from which nobody can compute the owner.

    :param secret: result of :func:`salt_secret`.
    """
    return hashlib.blake2b(owner.encode(), key=secret, digest_size=32).hexdigest()
