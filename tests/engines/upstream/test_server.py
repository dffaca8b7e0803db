from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aiochatstream.engines.upstream import Upstream
from aiochatstream.engines.upstream.dialects import PLAIN, Facts
from aiochatstream.engines.upstream.server import UpstreamServer

FACTS = Facts(PLAIN, "fake", None)

SESSION: Any = SimpleNamespace()


def server_of(url: str = "http://gpu1") -> UpstreamServer:
    server = UpstreamServer(Upstream(url), SESSION, 8, lambda server: None)
    server.probe_succeeded(FACTS)
    return server


@pytest.mark.parametrize(
    ("url", "pauses"),
    [("http://gpu1", [0, 0.5, 1, 2, 4, 8, 16, 30, 30]), ("unix:/a", [0, 0.5, 1, 2, 2, 2, 2, 2, 2])],
)
def test_a_server_that_only_answers_probes_is_used_less_and_less_often(url: str, pauses: list[float]) -> None:
    server = server_of(url)
    for pause in pauses:
        server.fail("HTTP 500")
        assert pause <= server.next_probe_seconds() <= min(pause * 1.5, pauses[-1])
        server.probe_succeeded(FACTS)
    slot = server.new_slot()
    slot.heard(output=False)
    assert server.next_probe_seconds() > 0
    slot.heard()
    assert server.next_probe_seconds() == 0


def test_only_new_answers_reset_the_back_off() -> None:
    server = server_of()
    old = server.new_slot()
    server.fail("HTTP 500")
    server.probe_succeeded(FACTS)
    old.heard()
    assert server.next_probe_seconds() > 0


def test_reports_of_an_earlier_outage_have_no_effect() -> None:
    server = server_of()
    slots = [server.new_slot() for _ in range(3)]
    slots[0].failed("reset")
    slots[1].failed("reset")
    server.probe_succeeded(FACTS)
    slots[1].draining()
    slots[2].failed("reset")
    assert (server.state, server.outages, server.running) == ("up", 1, 3)


def test_a_slot_is_freed_once() -> None:
    server = server_of()
    with server.new_slot() as slot, server.new_slot():
        slot.release()
        slot.release()
        assert server.running == 1
    assert server.running == 0
