"""Tests of GET /metrics, of the clients that may read it, and of the log line of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Generator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aiochatstream import ChatStream, Delta, Engine, GenerationParams, Prompt
from aiochatstream.engines.base import LabelledMetric
from tests.helpers import THOUGHTFUL, Client, ClientOf, DeltaEngine, MakeStepper, StartServer, echo, until


async def figures(client: Client) -> dict[str, float]:
    """Return the values of all samples by name, with labels in brackets."""
    async with client.session.get(f"{client.url}/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = list(text_string_to_metric_families(await response.text()))
    samples = {}
    for sample in (sample for family in families for sample in family.samples):
        labels = "".join(f"[{value}]" for value in sample.labels.values())
        samples[sample.name.removeprefix("aiochatstream_") + labels] = sample.value
    return samples


async def test_metrics_count_requests_and_tokens(start: StartServer, stepper: MakeStepper, client_of: ClientOf) -> None:
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine, num_of_concurrent_executions=1, max_queue_size=1, params=GenerationParams(max_new_tokens=3)
        )
    )
    client, other = client_of(server), client_of(server)
    running = asyncio.create_task(client.say("one"))
    await until(lambda: engine.calls)
    waiting = asyncio.create_task(other.say("two"))
    await until(lambda: server.chat_stream.admission.waiting == 1)
    async with client_of(server).post(user_input="three") as response:
        assert response.status == 503
    now = await figures(client)
    assert (now["num_requests_running"], now["num_requests_waiting"]) == (1, 1)
    assert now["requests_refused_total[too_many_requests]"] == 1
    engine.allow(6)
    await asyncio.gather(running, waiting)
    engine.fail_at = 0
    engine.allow(1)
    async with client.post(user_input="four") as response:
        assert response.status == 500
    now = await figures(client)
    assert (now["num_requests_running"], now["num_requests_waiting"], now["sessions"]) == (0, 0, 2)
    assert now["requests_finished_total[length]"] == 2
    assert now["requests_finished_total[internal_server_error]"] == 1
    assert now["generation_tokens_total"] == 6
    assert now["e2e_request_latency_seconds_count"] == 3
    assert now["time_to_first_token_seconds_count"] == 2
    assert now["inter_token_latency_seconds_count"] == 4


class Stepping(Engine):
    """An engine that reports one prefill step and two decode steps per answer."""

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        self.on_step("prefill", 0.5)
        self.on_step("decode", 0.02)
        self.on_step("decode", 0.03)
        yield Delta("text", (1,), "stop")


async def test_metrics_measure_the_engines_steps(start: StartServer, client_of: ClientOf) -> None:
    client = client_of(await start(ChatStream(engine=Stepping())))
    await client.say("Hello")
    now = await figures(client)
    assert (now["prefill_step_time_seconds_count"], now["prefill_step_time_seconds_sum"]) == (1, 0.5)
    assert (now["decode_step_time_seconds_count"], now["decode_step_time_seconds_sum"]) == (2, 0.05)


async def test_metrics_measure_the_event_loops_lag(start: StartServer, client_of: ClientOf) -> None:
    client = client_of(await start(ChatStream(engine=echo)))
    while not (await figures(client))["event_loop_lag_seconds_count"]:
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For"])
async def test_clients_behind_a_proxy_may_not_read_metrics(
    start: StartServer, client_of: ClientOf, header: str
) -> None:
    client = client_of(await start(ChatStream(engine=echo)))
    async with client.session.get(f"{client.url}/metrics", headers={header: "127.0.0.1"}) as response:
        assert response.status == 403
        assert (await response.json())["error"] == "forbidden"


async def test_allow_metrics_selects_the_clients(start: StartServer, client_of: ClientOf) -> None:
    client = client_of(await start(ChatStream(engine=echo, allow_metrics=lambda request: "key" in request.query)))
    for query, status in (("", 403), ("?key", 200)):
        async with client.session.get(f"{client.url}/metrics{query}") as response:
            assert response.status == status


async def test_an_answer_is_one_log_line_without_its_text(
    start: StartServer, client_of: ClientOf, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="aiochatstream")
    client = client_of(await start(ChatStream(engine=echo)))
    answer = await client.say("secret words")
    (line,) = [record.getMessage() for record in caplog.records if "answer" in record.getMessage()]
    assert line.startswith(f"answer {answer['message_id']} finished_reason=stop prompt_tokens=0 cached_tokens=0")
    assert "completion_tokens=2 " in line
    assert "secret" not in caplog.text


async def test_tokens_of_thoughts_are_counted(start: StartServer, client_of: ClientOf) -> None:
    client = client_of(await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL))))
    await client.say("one")
    now = await figures(client)
    assert (now["generation_tokens_total"], now["thinking_tokens_total"]) == (7, 4)


class LabelledEngine(DeltaEngine):
    """An engine with figures of two servers."""

    def labelled_metrics(self) -> list[LabelledMetric]:
        return [
            LabelledMetric(name, {"server": server}, value)
            for server, value in (("gpu1:8000", 1), ('a "b"\n', 2))
            for name in ("upstream_running", "upstream_failures_total")
        ]


async def test_figures_of_an_engine_have_labels(start: StartServer, client_of: ClientOf) -> None:
    server = await start(ChatStream(engine=LabelledEngine()))
    now = await figures(client_of(server))
    assert {name: value for name, value in now.items() if name.startswith("upstream")} == {
        "upstream_running[gpu1:8000]": 1,
        'upstream_running[a "b"\n]': 2,
        "upstream_failures_total[gpu1:8000]": 1,
        'upstream_failures_total[a "b"\n]': 2,
    }
