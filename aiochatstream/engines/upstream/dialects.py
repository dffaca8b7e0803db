"""Differences between servers with OpenAI's API."""  # a placeholder: the branch i19-client has the real module

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiochatstream.engines.upstream.session import UpstreamSession

Dialect = Any


@dataclass(frozen=True)
class Facts:
    """Properties of a server."""

    dialect: Dialect
    model: str
    context_len: int | None


async def probe(session: UpstreamSession, model: str | None) -> Facts:
    """Return the properties of a server that serves ``model``, or its only model if that is None.

    Raise aiohttp.ClientResponseError for a status other than 200, ValueError with a sentence if the response is not a
    list of models or lacks ``model``, and aiohttp.ClientError, OSError or TimeoutError if the connection fails.
    """
    raise NotImplementedError
