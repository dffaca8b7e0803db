"""Failures of upstreams behind a relay: other servers are tried, and clients get an honest end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiochatstream import Limits
from aiochatstream.engines.upstream import attempts, hops
from tests import fake_faults
from tests.fake_answers import answer_text
from tests.fake_faults import Fault
from tests.fake_upstream import FakeUpstream
from tests.helpers import StartServer, until
from tests.web.openai.relays import CHAT, HELLO, KEY, WORDS, Reply, post, relay_to, stream

BEFORE_TEXT = (
    Fault("reset", "request"),
    Fault("reset", "headers"),
    Fault("reset", "role"),
    Fault("end", "role"),
    Fault("internal"),
    Fault("bad_gateway"),
    Fault("rate_limit"),
    Fault("busy"),
    Fault("draining"),
    Fault("broken_json"),
    Fault("error_event"),
    Fault("finish"),
    Fault("finish", finish_reason=None),
    Fault("silence", "role"),
)

AFTER_TEXT = (
    Fault("reset", words=3),
    Fault("end", words=3),
    Fault("error_event", words=3),
    Fault("finish", words=3),
    Fault("finish", words=3, finish_reason=None),
    Fault("reset", "finish"),
    Fault("end", "finish"),
)


def check_whole(reply: Reply) -> None:
    assert reply.status == 200
    assert reply.is_whole
    assert reply.text == answer_text(HELLO, WORDS)


@pytest.mark.parametrize("fault", BEFORE_TEXT, ids=str)
async def test_another_server_answers_if_one_fails_before_the_text(start: StartServer, fault: Fault) -> None:
    async with FakeUpstream(words=WORDS) as first, FakeUpstream(words=WORDS) as second:
        first.faults = second.faults
        server = await start(relay_to(first, second, first_text=0.5))
        first.faults.append(Fault(**vars(fault)))
        check_whole(await stream(server.url))
        assert len(first.requests) == len(second.requests) == 1
        await until(lambda: server.idle)


async def test_another_server_answers_if_one_fails_during_a_whole_answer(start: StartServer) -> None:
    async with FakeUpstream(words=WORDS) as first, FakeUpstream(words=WORDS) as second:
        first.faults = second.faults
        server = await start(relay_to(first, second))
        first.faults.append(Fault("reset", words=3))
        reply = await post(server.url, CHAT, {"messages": HELLO})
        assert reply.json["choices"][0]["message"]["content"] == answer_text(HELLO, WORDS)
        assert len(first.requests) == len(second.requests) == 1


@pytest.mark.parametrize("fault", AFTER_TEXT, ids=str)
@pytest.mark.both_loops
async def test_a_stream_that_breaks_off_ends_with_an_error(start: StartServer, fault: Fault) -> None:
    async with FakeUpstream(words=WORDS) as first, FakeUpstream(words=WORDS) as second:
        first.faults = second.faults
        server = await start(relay_to(first, second))
        first.faults.append(Fault(**vars(fault)))
        reply = await stream(server.url)
        assert (reply.status, reply.events[-1]["error"]["code"]) == (200, "upstream_failed")
        assert b"[DONE]" not in reply.body
        assert b"/secret" not in reply.body
        assert str(first.port) not in reply.events[-1]["error"]["message"]
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in reply.events[:-1])
        sent = answer_text(HELLO, WORDS if fault.stage == "finish" else 3)
        assert sent.startswith(text)
        assert text == sent or fault.kind == "reset"  # which may discard what was sent before
        assert len(first.requests) + len(second.requests) == 1
        await until(lambda: server.idle)
        assert 'finished_reason="upstream_failed"} 1.0' in server.chat_stream.metrics.render().decode()


async def test_after_all_tries_the_client_gets_502(start: StartServer) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream))
        upstream.faults.append(Fault("internal", times=3))
        reply = await stream(server.url)
        assert (reply.status, reply.json["error"]["code"]) == (502, "upstream_failed")
        assert b"secret" not in reply.body
        assert len(upstream.requests) == 3


@pytest.mark.parametrize(
    "kind", [kind for kind in fake_faults.REFUSALS if kind.startswith("too_long")] + ["bad_request"]
)
@pytest.mark.parametrize("options", [{}, {"stream": True}])
async def test_a_refusal_of_the_request_goes_to_the_client(
    start: StartServer, kind: str, options: dict[str, Any]
) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream))
        upstream.faults.append(Fault(kind))
        reply = await post(server.url, CHAT, {"messages": HELLO, **options})
        status, body, _ = fake_faults.REFUSALS[kind]
        assert (reply.status, reply.json) == (status, body)
        check_whole(await stream(server.url))  # the server is not down


async def test_a_refusal_with_the_key_or_the_address_is_replaced(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream))
        for secret in (KEY, f"127.0.0.1:{upstream.port}", "//127.0.0.1/"):
            refusal: Any = (400, {"error": {"message": f"Bad request to {secret}."}}, {})
            monkeypatch.setitem(fake_faults.REFUSALS, "bad_request", refusal)
            upstream.faults.append(Fault("bad_request"))
            reply = await stream(server.url)
            assert (reply.status, reply.json["error"]["code"]) == (400, "bad_request")
            assert secret not in reply.body.decode()


async def test_a_wrong_key_for_a_server_is_an_error_of_this_server(
    start: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream))
        upstream.faults.append(Fault("unauthorized"))
        reply = await stream(server.url)
        assert reply.status == 500
        assert b"sk-secret" not in reply.body
    assert "misconfigured" in caplog.text


async def test_busy_servers_are_waited_for(start: StartServer) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream))
        upstream.faults += [Fault("busy_retry_after"), Fault("rate_limit")]
        check_whole(await stream(server.url))
        assert len(upstream.requests) == 3


async def test_a_server_that_is_busy_for_long_is_not_waited_for(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, body, _ = fake_faults.REFUSALS["rate_limit"]
    monkeypatch.setitem(fake_faults.REFUSALS, "rate_limit", (status, body, {"Retry-After": "60"}))
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream))
        upstream.faults.append(Fault("rate_limit"))
        reply = await stream(server.url)
        assert (reply.status, reply.headers["Retry-After"]) == (503, "60")
        assert reply.json["error"]["code"] == "upstream_unavailable"


async def test_servers_that_stay_busy_end_the_wait(start: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "BUSY_SECONDS", 0.5)
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream))
        upstream.faults.append(Fault("busy", times=100))
        reply = await stream(server.url)
        assert (reply.status, reply.json["error"]["code"]) == (503, "upstream_unavailable")
        assert "Retry-After" in reply.headers


async def test_a_hung_server_breaks_its_streams_off(start: StartServer) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream, stall=0.3))
        upstream.faults.append(Fault("silence", words=3))
        reply = await stream(server.url)
        assert reply.events[-1]["error"]["code"] == "upstream_failed"
        await until(lambda: upstream.disconnects)


async def test_without_servers_requests_are_refused(start: StartServer) -> None:
    upstream = FakeUpstream()
    await upstream.start()
    await upstream.close()
    server = await start(relay_to(upstream))
    reply = await stream(server.url)
    assert (reply.status, reply.json["error"]["code"]) == (503, "upstream_unavailable")


async def test_a_request_that_has_passed_this_server_is_refused(start: StartServer) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream))
        await stream(server.url)
        own = upstream.requests[0].headers[hops.HEADER]
        reply = await post(server.url, CHAT, {"messages": HELLO}, **{hops.HEADER: own})
        assert (reply.status, reply.json["error"]["code"]) == (508, "loop_detected")
        assert len(upstream.requests) == 1


async def test_an_answer_that_takes_too_long_is_cut_off(start: StartServer) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream, limits=Limits(max_answer=0.3)))
        upstream.faults += [Fault("silence", words=3), Fault("silence", "request")]
        streamed = await stream(server.url)
        assert streamed.events[-1]["error"]["code"] == "upstream_failed"
        whole = await post(server.url, CHAT, {"messages": HELLO})
        assert whole.status == 502
        await until(lambda: len(upstream.disconnects) == 2)


@pytest.mark.both_loops
async def test_a_shutdown_waits_for_streams_and_then_ends_them(start: StartServer) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream, limits=Limits(shutdown_timeout=0.5)))
        upstream.faults.append(Fault("silence", words=3, match="silent"))
        upstream.settings.token_s = 0.02
        silent = asyncio.create_task(stream(server.url, user="silent"))
        other = asyncio.create_task(stream(server.url))
        await until(lambda: upstream.words_sent > 3)
        await server.runner.cleanup()
        check_whole(await other)
        assert (await silent).events[-1]["error"]["code"] == "draining"
        await until(lambda: upstream.disconnects)


async def test_an_error_after_a_heartbeat_is_an_event(start: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiochatstream.web.openai.relay.HEARTBEAT_SECONDS", 0.05)
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream, slots=1))
        upstream.faults += [Fault("silence", "request", match="first"), Fault("bad_request", match="second")]
        first = asyncio.create_task(stream(server.url, user="first"))
        await until(lambda: upstream.running)
        second = asyncio.create_task(stream(server.url, user="second"))
        await until(lambda: server.chat_stream.admission.waiting)
        await asyncio.sleep(0.2)
        first.cancel()
        reply = await second
        assert reply.body.startswith(b": still here\n\n")
        assert reply.events == [fake_faults.REFUSALS["bad_request"][1]]
