"""Reading of requests that are relayed: only what the queue and the choice of a server need."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from aiochatstream.engines.upstream.json_object import JsonObject
from aiochatstream.engines.upstream.relay import RelayRequest
from aiochatstream.errors import BadRequest, InvalidValue
from aiochatstream.params import Flag
from aiochatstream.runtime.served_model import affinity_of
from aiochatstream.validation import STRICT
from aiochatstream.web.json import dumps
from aiochatstream.web.openai.completion_request import MAX_ANSWERS
from aiochatstream.web.openai.endpoint_context import ApiRequest
from aiochatstream.web.openai.keys import CONNECTION
from aiochatstream.web.openai.request_models import Count


class RelayedFields(BaseModel):
    """Fields that this server reads; all others are only for the model's server."""

    model_config = STRICT

    stream: Flag | None = None
    n: Count | None = None


def read_relay_request(received: ApiRequest, path: str) -> RelayRequest:
    """Return the request to the model's server.

    :param path: path of the endpoint there.

    Raise :class:`~aiochatstream.errors.InvalidValue` and :class:`~aiochatstream.errors.BadRequest`.
    """
    fields = received.parse(RelayedFields)
    try:
        body = JsonObject(received.content.decode("utf-8-sig") or "{}")
    except ValueError as error:
        raise BadRequest(f"The body is not JSON: {error}.") from None
    answers = (fields.n or 1) * prompt_count(body.members.get("prompt"))
    if answers > MAX_ANSWERS:
        raise InvalidValue(f"prompt, n: must request 1 to {MAX_ANSWERS} answers in total, not {answers}.")
    owner = "" if received.owner.startswith(CONNECTION) else received.owner
    return RelayRequest(
        path=path,
        body=body,
        model=received.model,
        stream=bool(fields.stream),
        answers=answers,
        owner=received.owner,
        affinity=affinity_of(owner, *first_texts(body.members)),
    )


def prompt_count(prompt: Any) -> int:
    """Return the number of prompts: texts or lists of token ids in a list. A text, or a list of token ids, is one."""
    return len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else 1


def first_texts(members: dict[str, Any]) -> list[str]:
    """Return the texts before the first answer: they stay the same while a conversation grows.

    :param members: members of the body of a request to any endpoint.
    """
    texts = [_text(members[name]) for name in ("instructions", "prompt") if name in members]
    messages = members.get("messages", members.get("input"))
    if not isinstance(messages, list):
        return [*texts, _text(messages)]
    for message in messages:
        if not isinstance(message, dict):
            return [*texts, _text(message)]
        texts.append(_text(message.get("content")))
        if message.get("role") not in ("system", "developer"):
            break
    return texts


def _text(content: Any) -> str:
    return content if isinstance(content, str) else dumps(content)
