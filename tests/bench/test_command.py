"""The command ``aiochatstream bench``, as a user runs it."""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from aiohttp import web
from transformers import PreTrainedTokenizerBase

from aiochatstream import ChatStream, GenerationParams
from aiochatstream.bench.exports import parameters
from aiochatstream.bench.html import page
from aiochatstream.cli.main import main
from tests.bench.events import delta
from tests.bench.scripted_server import Exchange, answer, plan, scripted
from tests.helpers import StartServer, echo, until


async def bench(*arguments: str) -> int:
    """Run the command in a thread, with its own event loop, and return the exit code."""

    def run() -> int:
        try:
            return main(["bench", *arguments])
        except SystemExit as error:  # raised by argparse
            return int(error.code or 0)

    return await asyncio.to_thread(run)


async def test_the_table_contains_all_figures(capsys: pytest.CaptureFixture[str]) -> None:
    async def script(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.number == 2:
            return web.json_response({"error": "too_many_requests"}, status=503, headers={"Retry-After": "0"})
        if exchange.number == 3:
            return web.json_response({"error": "internal_server_error", "detail": "Something broke."}, status=500)
        return await answer(exchange, words=3)

    async with scripted(script) as server:
        code = await bench(server.url, "--requests", "4", "--goodput", "ttft:10000", "tpot:10000")
    out = capsys.readouterr().out
    assert code == 0
    for line in (
        "concurrency 1, sse, http://127.0.0.1",
        "2 completed, 1 refused, 1 failed",
        "6, counted by the server",
        "20, 8 from a cache",
        "1 x too_many_requests",
        "1 x HTTP 500 Internal Server Error: Something broke",
        "requests/s within ttft 10000 ms, tpot 10000 ms",
        "mean        p50        p90        p95        p99",
    ):
        assert line in out
    rows = [line.split()[0] for line in out.splitlines() if line.count(".") == 5]
    assert rows == ["TTFT", "TPOT", "ITL", "E2E", "queue", "refused"]


async def test_json_csv_and_html_are_well_formed_and_complete(tmp_path: Path) -> None:
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "csv", "html")}
    arguments = [
        "--sweep",
        "1,2",
        "--requests",
        "4",
        "--abort-fraction",
        "0.25",
        "--seed",
        "5",
        "--header",
        "X-Key: sesame",
    ]

    async with scripted(answer) as server:
        assert await bench(server.url, *arguments, *(f"--{kind}={file}" for kind, file in files.items())) == 0

    report = json.loads(files["json"].read_text())
    assert (report["schema"], report["schema_version"], report["interrupted"]) == ("aiochatstream-bench", 1, False)
    parameters = report["parameters"]
    assert (parameters["url"], parameters["sweep"], parameters["seed"]) == (server.url, [1, 2], 5)
    assert {"cpu", "cores", "python", "aiohttp", "aiochatstream"} <= report["environment"].keys()
    assert [run["concurrency"] for run in report["runs"]] == [1, 2]
    assert report["runs"][0]["ttft_s"].keys() == {"count", "mean", "p50", "p90", "p95", "p99"}
    assert [len(run["records"]) for run in report["runs"]] == [4, 4]

    rows = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert [row["concurrency"] for row in rows] == ["1"] * 4 + ["2"] * 4
    assert rows[0].keys() == {"concurrency", "rate", *report["runs"][0]["records"][0]}

    page = files["html"].read_text()
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))  # noqa: S314 - our own
    images = [image.get("src", "").partition(";base64,") for image in root.iter("img")]
    assert len(images) == 4 + 4 + 2 * 3
    for media_type, _, data in images:
        assert media_type == "data:image/svg+xml"
        assert ElementTree.fromstring(base64.b64decode(data)).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314
    assert "://" not in page.replace(server.url, ""), "refers to another file"
    assert not any("sesame" in file.read_text() for file in files.values()), "headers may be secret"


async def test_the_html_page_requires_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    async with scripted(answer) as server:
        assert await bench(server.url, "--html", str(tmp_path / "report.html")) == 2
        assert not server.exchanges, "reported before the load test"
        assert await bench(server.url, "--requests", "1") == 0
    printed = capsys.readouterr().err.splitlines()
    assert printed == [
        "aiochatstream: The package matplotlib is missing. Install it with: pip install 'aiochatstream[bench]'"
    ]


async def test_the_page_of_a_run_without_answers_is_well_formed(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.number == 0:
            return await answer(exchange)
        return web.json_response({"error": "<&>"}, status=500)

    file = tmp_path / "report.html"
    async with scripted(script) as server:
        assert await bench(server.url, "--requests", "2", "--html", str(file)) == 1
    ElementTree.fromstring(file.read_text().removeprefix("<!DOCTYPE html>\n"))  # noqa: S314 - our own


WRONG_USE = {
    "ftp://127.0.0.1": "not a URL",
    "127.0.0.1:8080": "not a URL",
    "http://me:sesame@127.0.0.1": "send user name and password in a header",
    "http://127.0.0.1:1": "cannot connect: Connection refused",
    "http://127.0.0.1:1 --protocol openai": "cannot connect: Connection refused",
    "URL --rate 1 --concurrency 2": "--rate (open loop",
    "URL --rate 1 --sweep 1,2": "--rate (open loop",
    "URL --sweep 1,2 --concurrency 2": "exclude each other",
    "URL --burstiness 2": "requires --rate",
    "URL --abort-fraction 0.6 --slow-readers 0.6": "must not exceed 1",
    "URL --protocol chatstream --max-tokens 5": "--max-tokens cannot be used",
    "URL --protocol chatstream --ignore-eos": "--ignore-eos cannot be used",
    "URL --model m": "--model requires --protocol openai",
    "URL --json /nowhere/at/all.json": "cannot be written",
    "URL --prompts /nowhere/at/all.txt": "must be built in",
    "URL --concurrency 0": "integer, at least 1",
    "URL --sweep 1,x": "integer, at least 1",
    "URL --duration nan": "must be a number",
    "URL --abort-fraction 2": "from 0 to 1",
    "URL --goodput speed:5": "must be like ttft:500",
    "URL --extra-body []": "JSON object",
    "URL --header nonsense": "Name: value",
    "URL --protocol telepathy": "invalid choice",
    "URL --protocol openai": "lists no model",
    "URL --protocol openai --model m": "404 Not Found: 404: Not Found (does the server support --protocol openai?)",
    "URL --protocol text": "is text/event-stream, not text/plain",
    "URL/elsewhere": "HTTP 404",
    "": "required: URL",
}


def test_reports_do_not_contain_the_folder_of_the_prompts(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Hello")
    with_file = plan("http://127.0.0.1", prompts=str(tmp_path / "mine.txt"))
    assert parameters(with_file)["prompts"] == "mine.txt"
    assert str(tmp_path) not in page(with_file, [])


@pytest.mark.parametrize("arguments", WRONG_USE)
async def test_wrong_use_prints_one_sentence_and_exits_with_2(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with scripted(answer) as server:
        code = await bench(*arguments.replace("URL", server.url).split())
    printed = capsys.readouterr()
    assert code == 2
    sentence = printed.err.removeprefix("usage: aiochatstream bench URL [options]\n")
    assert sentence.startswith("aiochatstream")
    assert sentence.count("\n") == 1
    assert WRONG_USE[arguments] in sentence
    assert printed.out == ""


@pytest.mark.parametrize(
    ("status", "body"), [(503, {"error": "starting"}), (422, {"error": "x", "detail": "Too long."})]
)
async def test_a_failed_first_request_exits_with_2(
    status: int, body: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    async def script(exchange: Exchange) -> web.StreamResponse | None:
        return web.json_response(body, status=status)

    async with scripted(script) as server:
        assert await bench(server.url) == 2
    err = capsys.readouterr().err
    assert body.get("detail", body["error"]).rstrip(".") in err
    assert err.count("\n") == 1


async def test_prompts_of_a_file_are_used_in_turn(tmp_path: Path) -> None:
    lines, array = tmp_path / "prompts.txt", tmp_path / "prompts.json"
    lines.write_text("one\n\ntwo\n三\n", encoding="utf-8")
    array.write_text('["a\\nb", "c"]')
    async with scripted(answer) as server:
        assert await bench(server.url, "--requests", "4", "--prompts", str(lines)) == 0
        assert server.prompts == ["two", "三", "one", "two"]
        server.exchanges.clear()
        assert await bench(server.url, "--requests", "2", "--prompts", str(array)) == 0
        assert server.prompts == ["c", "a\nb"]


@pytest.mark.parametrize("content", ["\n\n", "[1]", "{}", "[", "[]"])
async def test_a_file_without_prompts_is_wrong_use(content: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(content)
    assert await bench("http://127.0.0.1:1", "--prompts", str(file)) == 2


async def test_the_default_model_is_the_first_that_an_openai_server_lists() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.open()
        await exchange.response.write(b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}\n\n')

    async with scripted(script, "/v1/chat/completions", models=["tiny", "other"]) as server:
        assert await bench(server.url, "--protocol", "openai", "--requests", "1") == 0
    assert server.exchanges[1].body["model"] == "tiny"


async def test_ctrl_c_prints_the_results_so_far(tmp_path: Path) -> None:
    """The server answers three requests, but not the fourth, during which the signal is sent."""

    async def script(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.number <= 3:
            return await answer(exchange)
        await exchange.open()
        await exchange.response.write(delta("half an ").encode())
        await asyncio.Event().wait()
        return None

    file = tmp_path / "report.json"
    async with scripted(script) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aiochatstream", "bench", server.url, "--requests", "50", "--json", str(file)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background jobs
        )
        try:
            await until(lambda: len(server.exchanges) == 5)
            process.send_signal(signal.SIGINT)
            out, err = await asyncio.wait_for(process.communicate(), 20)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert b"Traceback" not in err
    assert b"3 completed, 0 refused, 0 failed; 1 running at the interruption, not counted" in out
    assert out.endswith(b"Interrupted: results so far.\n")
    assert process.returncode == 130
    report = json.loads(file.read_text())
    assert (report["interrupted"], report["runs"][0]["completed"], report["runs"][0]["unfinished"]) == (True, 3, 1)


def five_words(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
    yield from ("one ", "two ", "three ", "four ", "five ")


@pytest.mark.parametrize("protocol", ["sse", "text"])
async def test_all_requests_to_aiochatstream_are_completed(protocol: str, start: StartServer, tmp_path: Path) -> None:
    server = await start(ChatStream(engine=five_words, num_of_concurrent_executions=2, max_queue_size=5))
    file = tmp_path / "report.json"
    arguments = ["--protocol", protocol, "--concurrency", "4", "--requests", "12", "--turns", "3", "--json", str(file)]
    assert await bench(server.url, *arguments) == 0
    [run] = json.loads(file.read_text())["runs"]
    assert (run["completed"], run["refused"], run["failed"]) == (12, 0, 0)
    if protocol == "sse":
        assert (run["output_tokens"], run["token_source"]) == (60, "server")
        assert run["queue_s"]["count"] == 12
    await until(lambda: server.idle)


async def test_a_full_aiochatstream_refuses_requests(start: StartServer, tmp_path: Path) -> None:
    server = await start(ChatStream(engine=echo, num_of_concurrent_executions=1, max_queue_size=0))
    file = tmp_path / "report.json"
    async with asyncio.timeout(20):
        assert await bench(server.url, "--rate", "1000", "--requests", "20", "--json", str(file)) == 0
    [run] = json.loads(file.read_text())["runs"]
    assert run["completed"] + run["refused"] == 20
    assert run["late_s"]["count"] == 20


async def test_a_tokenizer_counts_tokens_that_the_server_does_not_report(
    model_folder: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    words = "Paris is the capital of France, unsurprisingly."

    async def script(exchange: Exchange) -> None:
        await exchange.open("text/plain")
        await exchange.response.write(words.encode())

    file = tmp_path / "report.json"
    async with scripted(script) as server:
        arguments = ["--protocol", "text", "--requests", "2", "--tokenizer", model_folder, "--json", str(file)]
        assert await bench(server.url, *arguments) == 0
    [run] = json.loads(file.read_text())["runs"]
    assert run["token_source"] == "tokenizer"  # noqa: S105
    assert run["output_tokens"] == 2 * len(tokenizer.encode(words))
