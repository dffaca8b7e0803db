"""``aiochatstream serve`` with URLs: answers of other servers, which may fail."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from aiochatstream.cli.main import main
from aiochatstream.sse import EventParser
from tests.cli.test_main import serve, url_when_ready
from tests.fake_answers import answer_text
from tests.processes import PYTHON, START_PATIENCE, Process, ask, running

QUESTION = "What is the capital of Japan?"
WORDS = 40


@contextmanager
def upstream(folder: Path, **settings: object) -> Iterator[tuple[str, Process]]:
    """Yield the URL and the process of a server with an answer of ``WORDS`` words."""
    command = [PYTHON, "-m", "tests.fake_upstream", "--settings", json.dumps({"words": WORDS, **settings})]
    with running(command, folder, forked=True) as process:
        yield process.wait_for(lambda: process.out.strip() or None, "URL"), process


def rows_of(out: str) -> dict[str, str]:
    return dict(re.findall(r"^  (\w+) {2,}(.+)$", out, re.MULTILINE))


def events_of(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ask the question and yield the events of the answer."""
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    body = json.dumps({"user_input": QUESTION}).encode()
    request = urllib.request.Request(f"{url}/chat_stream", body, headers)  # noqa: S310 - a URL of this test
    with urllib.request.urlopen(request, timeout=START_PATIENCE) as response:  # noqa: S310
        parser = EventParser()
        for line in response:
            for name, data in parser.feed(line):
                yield name, json.loads(data)


def test_two_servers_answer_and_one_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        servers = dict(stack.enter_context(upstream(tmp_path / str(number), token_s=0.05)) for number in range(2))
        front = stack.enter_context(serve(tmp_path / "front", *servers, "--slots-each", "7"))
        url = url_when_ready(front)
        rows = rows_of(front.out)
        assert (rows["model"], rows["servers"]) == ("fake", "2 of 2 up")
        assert rows["concurrency"].startswith("14 ")
        assert rows["queue"].startswith("500 ")
        events, text = [], ""
        for name, data in events_of(url):
            events.append(name)
            if name == "delta":
                text += data["text"]
            if events.count("delta") == 3 and name == "delta":
                busy = [address for address in servers if ask(f"{address}/fake").json["running"]]
                assert len(busy) == 1
                servers.pop(busy[0]).end(signal.SIGKILL)
        assert text == answer_text([{"role": "user", "content": QUESTION}], WORDS)
        assert (events.count("done"), events[-1]) == (1, "done")
        assert data["usage"]["completion_tokens"] >= WORDS
        for server in servers.values():
            server.end(signal.SIGKILL)
        front.wait_for(lambda: ask(f"{url}/readyz").status == 503 or None, "503")
        refusal = ask(f"{url}/chat_stream", {"user_input": QUESTION})
        assert (refusal.status, refusal.json["error"]) == (503, "upstream_unavailable")
        assert "127.0.0.1" not in refusal.text
        assert front.end() == 0
        assert "Traceback" not in front.err


def test_the_key_of_the_servers_is_sent_and_in_no_log(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("key-of-the-servers\n")
    file.chmod(0o600)
    with upstream(tmp_path / "server") as (address, _):
        with serve(tmp_path / "front", address, "--upstream-key-file", str(file)) as front:
            url = url_when_ready(front)
            assert ask(f"{url}/chat_stream", {"user_input": QUESTION}).status == 200
            assert front.end() == 0
        assert "key-of-the-servers" not in front.out + front.err
        assert ask(f"{address}/fake").json["requests"] == 1


def test_clients_choose_among_models_by_their_names(tmp_path: Path) -> None:
    with ExitStack() as stack:
        small, _ = stack.enter_context(upstream(tmp_path / "small", model="tiny", words=3))
        big, server = stack.enter_context(upstream(tmp_path / "big", model="huge"))
        front = stack.enter_context(serve(tmp_path / "front", "--model", f"small={small}", "--model", f"big={big}"))
        url = url_when_ready(front)
        assert [model["id"] for model in ask(f"{url}/v1/models").json["data"]] == ["small", "big"]
        messages = [{"role": "user", "content": QUESTION}]
        for name, words in (("small", 3), ("big", WORDS)):
            answer = ask(f"{url}/v1/chat/completions", {"model": name, "messages": messages}).json
            assert answer["model"] == name
            assert answer["choices"][0]["message"]["content"] == answer_text(messages, words)
        unknown = ask(f"{url}/v1/chat/completions", {"model": "tiny", "messages": messages})
        assert unknown.status == 404
        assert "'small' or 'big'" in unknown.text
        assert ask(f"{url}/chat_stream", {"user_input": QUESTION}).text == answer_text(messages, 3)
        server.end(signal.SIGKILL)
        down = ask(f"{url}/v1/chat/completions", {"model": "big", "messages": messages})
        assert down.status in (502, 503)
        assert ask(f"{url}/v1/chat/completions", {"model": "small", "messages": messages}).status == 200
        assert front.end() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["http://127.0.0.1:1", "a-model"], "MODEL: must be one model, or URLs of servers, not http://127.0.0.1:1 a-m"),
        (["localhost:8000"], "URLs must begin with http://, https://, dns+http://"),
        (["ftp://localhost"], "URLs must begin with http://, https://, dns+http://"),
        (["--model", "a=gpu1.example:80/v1"], "URLs must begin with http://, https://, dns+http://"),
        (["a", "b"], "MODEL: must be one model, or URLs of servers"),
        (["http://user:pass@127.0.0.1:1"], "upstreams: must be URLs without user names and passwords"),
        (["http://127.0.0.1:1", "--slots-each", "0"], "slots must be a whole number from 1 to 100,000, not 0"),
        (["http://127.0.0.1:1", "--dtype", "float32"], "--dtype cannot be used with URLs"),
        (["http://127.0.0.1:1", "--compile"], "--compile cannot be used with URLs"),
        (["http://127.0.0.1:1", "--record", "folder"], "--record cannot be used with URLs"),
        (["--slots-each", "3"], "--slots-each needs the URL of a server"),
        (["--upstream-key-file", "file"], "--upstream-key-file needs the URL of a server"),
        (["http://127.0.0.1:1", "--mock", "echo"], "MODEL cannot be used with --mock"),
        (["--model", "a=b", "--mock", "echo"], "--model cannot be used with --mock"),
        (["--model", "a"], "--model: must be NAME=WHAT, not 'a'"),
        (["--model", "a=b", "--model", "a=c"], "--model: must have a different name for each model, not a, a"),
        (["--model", "a=b", "c"], "MODEL: must be absent with --model NAME=WHAT"),
        (["--upstream-model", "a"], "--upstream-model needs the URL of a server"),
        (["http://127.0.0.1:1", "--share-queue"], "--share-queue needs --session redis"),
        (["--share-queue", "--session", "redis"], "--share-queue needs URLs"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "pass@" not in err
