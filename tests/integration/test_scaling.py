"""Tests of the configurations in docs/scaling.md: fronts behind nginx, commands, and the lines for Kubernetes."""

from __future__ import annotations

import argparse
import asyncio
import re
import shlex
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from aiochatstream import Limits
from aiochatstream.cli import serve_options
from aiochatstream.cli.main import build_parser
from tests.cli.test_main import serve, url_when_ready
from tests.fake_answers import answer_text
from tests.fake_upstream import FakeUpstream
from tests.helpers import sse_events
from tests.integration.test_deployment import nginx_client
from tests.nginx_server import Nginx, documented_block, replace, running_block
from tests.processes import ROOT, Process, free_port
from tests.redis_server import RedisServer

PAGE = ROOT / "docs" / "scaling.md"

WORDS = 40


def documented_commands() -> list[list[str]]:
    """Return the arguments of each ``aiochatstream serve`` on the page."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line[2:] for line in lines if line[:2] == ["aiochatstream", "serve"]]


def options_of(arguments: list[str]) -> argparse.Namespace:
    return build_parser().parse_args(["serve", *arguments])


@pytest.mark.parametrize("arguments", documented_commands(), ids=" ".join)
def test_the_documented_commands_are_accepted(arguments: list[str]) -> None:
    assert serve_options.check(options_of(arguments))


def front_command(upstreams: list[FakeUpstream], redis_url: str) -> list[str]:
    """Return the arguments of the documented fronts, with addresses of the test."""
    [documented] = [arguments for arguments in documented_commands() if "--redis" in arguments]
    addresses = {
        "http://gpu1:8000": upstreams[0].url,
        "http://gpu2:8000": upstreams[1].url,
        "redis://redis:6379": redis_url,
        "0.0.0.0": "127.0.0.1",  # noqa: S104 - the documented address
    }
    assert set(addresses) <= set(documented)
    return [addresses.get(argument, argument) for argument in documented]


async def start_fronts(stack: ExitStack, folder: Path, arguments: list[str]) -> dict[str, Process]:
    """Start two fronts; return them by ``HOST:PORT``."""
    fronts: dict[str, Process] = {}
    for number in range(2):
        port = free_port()
        fronts[f"127.0.0.1:{port}"] = stack.enter_context(serve(folder / f"front{number}", *arguments, port=port))
    for front in fronts.values():
        await asyncio.to_thread(url_when_ready, front)  # the upstreams run in this thread
    return fronts


def start_nginx(stack: ExitStack, folder: Path, fronts: dict[str, Process]) -> Nginx:
    block = documented_block("scaling.md", "Several fronts")
    for number, address in enumerate(fronts, 1):
        block = replace(block, f"front{number}:8080", address)
    return stack.enter_context(running_block(block, folder / "nginx"))


async def test_a_conversation_moves_between_two_fronts_behind_nginx(redis_server: RedisServer, tmp_path: Path) -> None:
    async with FakeUpstream(words=WORDS) as first, FakeUpstream(words=WORDS) as second:
        upstreams = [first, second]

        def last_front() -> str:
            """Return the id of the front that has sent the last request."""
            received = [upstream.requests[-1] for upstream in upstreams if upstream.requests]
            newest = max(received, key=lambda request: len(request.body["messages"]))
            return newest.headers["X-Aiochatstream-Hops"]

        with ExitStack() as stack:
            fronts = await start_fronts(stack, tmp_path, front_command(upstreams, redis_server.url))
            nginx = start_nginx(stack, tmp_path, fronts)
            messages: list[dict[str, str]] = []
            used: list[str] = []
            cookies = None
            for number in range(2, 60):  # until nginx has chosen both fronts, by the address of the client
                async with nginx_client(nginx, f"127.0.0.{number}") as client:
                    if cookies is not None:
                        client.session.cookie_jar.update_cookies(cookies)
                    messages.append({"role": "user", "content": f"message {number}"})
                    answer = await client.say(messages[-1]["content"])
                    assert answer["text"] == answer_text(messages, WORDS)
                    messages.append({"role": "assistant", "content": answer["text"]})
                    assert await client.texts() == [message["content"] for message in messages]
                    cookies = {cookie.key: cookie.value for cookie in client.session.cookie_jar}
                used.append(last_front())
                if len(set(used)) == 2:
                    break
            assert len(set(used)) == 2
            for front in [*fronts.values()][:1]:
                front.end(signal.SIGKILL)
            for number in (2, 3, 4, 5):
                async with nginx_client(nginx, f"127.0.0.{number}") as client:
                    client.session.cookie_jar.update_cookies(cookies or {})
                    await client.say("after the end of a front")
                    assert len(await client.texts()) == len(messages) + 2 * (number - 1)
            for front in [*fronts.values()][1:]:
                assert front.end() == 0


async def test_nginx_passes_each_piece_on_at_once(redis_server: RedisServer, tmp_path: Path) -> None:
    async with FakeUpstream(words=WORDS, token_s=0.05) as first, FakeUpstream(words=WORDS, token_s=0.05) as second:
        with ExitStack() as stack:
            arguments = front_command([first, second], redis_server.url)
            nginx = start_nginx(stack, tmp_path, await start_fronts(stack, tmp_path, arguments))
            async with (
                nginx_client(nginx) as client,
                client.post(accept="text/event-stream", user_input="hi") as response,
            ):
                names = []
                async for name, _ in sse_events(response):
                    names.append(name)
                    if name == "delta" and names.count("delta") == 1:
                        assert first.running + second.running == 1  # the answer has not ended
                assert names[-1] == "done"


def kubernetes_objects() -> dict[tuple[str, str], Any]:
    [block] = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return {(item["kind"], item["metadata"]["name"]): item["spec"] for item in yaml.safe_load_all(block)}


def test_the_kubernetes_lines_fit_together() -> None:
    objects = kubernetes_objects()
    for name in ("vllm", "chat"):
        service, deployment = objects["Service", name], objects["Deployment", name]
        labels = deployment["template"]["metadata"]["labels"]
        assert service["selector"] == deployment["selector"]["matchLabels"] == labels
        [container] = deployment["template"]["spec"]["containers"]
        [port] = container["ports"]
        assert service["ports"] == [{"port": port["containerPort"]}]
        assert container["readinessProbe"]["httpGet"]["port"] == port["containerPort"]
    assert objects["Service", "vllm"]["clusterIP"] == "None"


def test_the_front_for_kubernetes_ends_in_the_time_that_it_has() -> None:
    pod = kubernetes_objects()["Deployment", "chat"]["template"]["spec"]
    [container] = pod["containers"]
    options = options_of(container["command"][2:])
    [source] = serve_options.check(options)
    assert source.urls == ("dns+http://vllm:8000",)
    assert options.port == container["ports"][0]["containerPort"]
    sleep, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    shutdown_timeout = Limits().shutdown_timeout
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + shutdown_timeout + 30
