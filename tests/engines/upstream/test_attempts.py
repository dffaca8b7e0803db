"""Tests for the limits of the attempts to generate one answer."""

from __future__ import annotations

import pytest

from aiochatstream.engines.upstream.attempts import Attempts
from aiochatstream.errors import UpstreamUnavailable
from tests.engines.upstream.engines import running_engine, servers_of
from tests.fake_upstream import FakeUpstream
from tests.helpers import until


async def test_the_patience_with_busy_servers_begins_anew_with_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiochatstream.engines.upstream.attempts.BUSY_SECONDS", 0.05)
    async with FakeUpstream() as upstream, running_engine(upstream.url) as engine:
        [server] = servers_of(engine).values()
        attempts = Attempts(3)
        attempts.busy(server, has_new_text=False)
        await until(lambda: not attempts.wait_seconds)
        attempts.busy(server, has_new_text=True)  # as of a server that shuts down while it generates
        await until(lambda: not attempts.wait_seconds)
        with pytest.raises(UpstreamUnavailable):
            attempts.busy(server, has_new_text=False)
