"""OpenAI's own client, for the tests of its API."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from openai import AsyncOpenAI

from tests.helpers import Server
from tests.web.openai.helpers import OpenAIClientOf

platform.processor()  # OpenAI's client calls it, and the first call starts a program


@pytest.fixture
async def openai_of() -> AsyncIterator[OpenAIClientOf]:
    """Yield a function that returns a client of a server."""
    async with AsyncExitStack() as stack:

        def make(server: Server, *, api_key: str = "none", max_retries: int = 0, strict: bool = True) -> AsyncOpenAI:
            client = AsyncOpenAI(
                base_url=f"{server.url}/v1",
                api_key=api_key,
                max_retries=max_retries,
                _strict_response_validation=strict,
            )
            stack.push_async_callback(client.close)
            return client

        yield make
