"""Tests for failures of upstreams before and after the first text of an answer."""

from __future__ import annotations

import logging

import pytest

from aiochatstream.engines.upstream import attempts
from aiochatstream.engines.upstream.server import MAX_ERRORS
from aiochatstream.errors import (
    BadRequest,
    ChatStreamError,
    ContextLengthExceeded,
    EngineFailed,
    UpstreamFailed,
    UpstreamUnavailable,
)
from tests.engines.upstream.engines import KEY, MESSAGES, WORDS, CollectedAnswer, collect, two_upstreams
from tests.fake_answers import answer_text
from tests.fake_faults import Fault

FAILURES = (
    Fault("reset", "request"),
    Fault("reset", "headers"),
    Fault("reset", "role"),
    Fault("end", "headers"),
    Fault("end", "role"),
    Fault("broken_json"),
    Fault("finish", finish_reason="abort"),
    Fault("finish", finish_reason=None),
)


@pytest.mark.parametrize("fault", FAILURES, ids=str)
async def test_a_failure_before_the_first_text_is_tried_elsewhere_and_the_server_is_down(fault: Fault) -> None:
    async with two_upstreams(fault) as both:
        answer = await collect(both.engine)
        assert (both.requests, both.outages) == (2, 1)
        assert both.engine.metrics()["upstream_retries_total"] == 1
    assert (answer.text, answer.usage[1]) == (answer_text(MESSAGES, WORDS), WORDS)


@pytest.mark.parametrize("kind", ["internal", "bad_gateway", "error_event"])
async def test_an_error_response_is_tried_elsewhere_and_several_in_succession_mean_down(kind: str) -> None:
    async with two_upstreams(Fault(kind)) as both:
        answer = await collect(both.engine)
        assert (both.requests, both.outages) == (2, 0)
        assert answer.text == answer_text(MESSAGES, WORDS)
        both.first.faults.append(Fault(kind, times=1000))
        while not both.outages:
            assert both.requests < 2 + 2 * MAX_ERRORS + 3
            with pytest.raises(UpstreamFailed):
                await collect(both.engine)
        assert both.requests >= 2 + MAX_ERRORS


@pytest.mark.parametrize("stage", ["request", "headers", "role"])
async def test_a_slow_server_is_left_without_being_down(stage: str) -> None:
    async with two_upstreams(Fault("silence", stage), first_text=0.2) as both:
        answer = await collect(both.engine)
        assert (both.requests, both.outages) == (2, 0)
        assert len(both.first.disconnects + both.second.disconnects) == 1
    assert answer.text == answer_text(MESSAGES, WORDS)


@pytest.mark.parametrize("kind", ["rate_limit", "busy", "busy_retry_after", "draining"])
async def test_a_busy_or_draining_server_is_left_without_being_down(kind: str) -> None:
    async with two_upstreams(Fault(kind)) as both:
        answer = await collect(both.engine)
        assert (both.requests, both.outages) == (2, 0)
        assert both.engine.metrics()["upstream_retries_total"] == 0
    assert answer.text == answer_text(MESSAGES, WORDS)


async def test_a_refused_connection_is_tried_elsewhere() -> None:
    async with two_upstreams() as both:
        await both.first.close()
        assert (await collect(both.engine)).text == answer_text(MESSAGES, WORDS)
        await both.first.start()
        await both.second.close()
        assert (await collect(both.engine)).text == answer_text(MESSAGES, WORDS)


REFUSED: dict[str, type[ChatStreamError]] = {
    "too_long_vllm": ContextLengthExceeded,
    "too_long_sglang": ContextLengthExceeded,
    "too_long_openai": ContextLengthExceeded,
    "too_long_llamacpp": ContextLengthExceeded,
    "bad_request": BadRequest,
    "unauthorized": EngineFailed,
    "no_model": EngineFailed,
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_an_error_of_the_request_is_not_tried_elsewhere(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with two_upstreams(Fault(kind)) as both:
        with pytest.raises(REFUSED[kind]) as raised:
            await collect(both.engine)
        assert (both.requests, both.outages) == (1, 0)
        assert type(raised.value) is REFUSED[kind]
        assert str(both.first.port) not in raised.value.detail
        assert str(both.second.port) not in raised.value.detail
    for text in ("secret", "127.0.0.1", "tokens", "must be 0 to 2"):
        assert text not in raised.value.detail
    assert KEY not in caplog.text
    problems = [record.levelno for record in caplog.records if record.levelno >= logging.WARNING]
    expected = {"bad_request": [logging.WARNING], "unauthorized": [logging.ERROR], "no_model": [logging.ERROR]}
    assert problems == expected.get(kind, [])


async def test_the_tries_are_limited() -> None:
    async with two_upstreams(Fault("error_event", times=9), tries=4) as both:
        answer = CollectedAnswer()
        with pytest.raises(UpstreamFailed, match="failed to answer") as raised:
            await collect(both.engine, answer=answer)
        assert both.requests == 4
    assert answer.deltas == []
    assert "secret" not in raised.value.detail


async def test_waiting_for_busy_servers_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "BUSY_SECONDS", 0.2)
    async with two_upstreams(Fault("busy", times=99)) as both:
        with pytest.raises(UpstreamUnavailable) as raised:
            await collect(both.engine)
        assert (both.requests, both.outages) == (2, 0)
    assert raised.value.retry_after


async def test_a_busy_server_is_asked_again() -> None:
    async with two_upstreams(Fault("busy_retry_after", times=3)) as both:
        assert (await collect(both.engine)).text == answer_text(MESSAGES, WORDS)
        assert both.requests == 4


LATE_FAILURES = (
    Fault("reset", words=5),
    Fault("end", words=5),
    Fault("broken_json", words=5),
    Fault("error_event", words=5),
    Fault("finish", words=5, finish_reason="abort"),
    Fault("finish", words=5, finish_reason=None),
    Fault("reset", "finish"),
    Fault("end", "finish"),
)


@pytest.mark.parametrize("fault", LATE_FAILURES, ids=str)
async def test_a_failure_after_text_is_resumed_elsewhere(fault: Fault) -> None:
    async with two_upstreams(fault) as both:
        answer = await collect(both.engine)
        assert (both.requests, both.outages) == (2, int(fault.kind != "error_event"))
        assert both.engine.metrics()["upstream_resumptions_total"] == 1
    assert (answer.text, answer.usage[1], answer.finish_reasons) == (answer_text(MESSAGES, WORDS), WORDS, ["stop"])


@pytest.mark.parametrize("fault", LATE_FAILURES, ids=str)
async def test_a_failure_after_text_without_resuming_is_an_honest_error(fault: Fault) -> None:
    async with two_upstreams(fault, resume=False) as both:
        answer = CollectedAnswer()
        with pytest.raises(UpstreamFailed, match="broke off") as raised:
            await collect(both.engine, answer=answer)
        assert (both.requests, both.outages) == (1, int(fault.kind != "error_event"))
    words = WORDS if fault.stage == "finish" else 5
    assert answer.text == answer_text(MESSAGES, WORDS)[: len(answer.text)]
    assert len(answer.text.split(" ")) == words
    assert answer.finish_reasons == []
    assert "secret" not in raised.value.detail


async def test_a_server_that_hangs_in_the_middle_is_left_after_the_stall_limit() -> None:
    async with two_upstreams(Fault("silence", words=5), stall=0.3) as both:
        answer = await collect(both.engine)
        assert (both.requests, both.outages) == (2, 1)
        assert len(both.first.disconnects + both.second.disconnects) == 1
    assert (answer.text, answer.usage[1]) == (answer_text(MESSAGES, WORDS), WORDS)
