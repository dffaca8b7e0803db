"""OpenAI's own client, for the tests of its API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.helpers import Server


@pytest.fixture
async def openai_of() -> AsyncIterator[Callable[..., AsyncOpenAI]]:
    """``openai_of(server, ...)`` gives OpenAI's client, which does not try again by itself, and validates what it reads
    strictly, as it does not by default.
    """
    async with AsyncExitStack() as stack:

        def make(server: Server, **options: Any) -> AsyncOpenAI:
            given = {"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0}
            given |= {"_strict_response_validation": True, **options}
            client = AsyncOpenAI(**given)
            stack.push_async_callback(client.close)
            return client

        yield make
