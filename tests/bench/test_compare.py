"""bench/compare.py, as a user runs it, with scripted servers."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shlex
import signal
import sys
import time
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import psutil
import pytest

from aiochatstream.bench.metrics import Distribution
from tests.bench.script_runs import run
from tests.bench.scripted_server import Exchange, answer, scripted
from tests.processes import END_PATIENCE, PYTHON, ROOT, free_port, running

if TYPE_CHECKING:
    from ratios import Round

SMALL = ["--concurrency", "1,2", "--rounds", "2", "--requests-per-client", "1", "--max-tokens", "4"]


def command(folder: Path, name: str, *options: str) -> str:
    log = str(folder / "requests")
    words = [PYTHON, "-m", "tests.bench.fake_server", "--name", name, "--request-log", log, *options]
    return f"{name}={shlex.join(words)} --port {{port}}"


class LoggedRequest(NamedTuple):
    """A request in the log of the servers."""

    server: str
    pid: int
    prompt: str


def logged_requests(folder: Path) -> list[LoggedRequest]:
    """Return the requests to all servers in their order."""
    file = folder / "requests"
    return [LoggedRequest(*json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def turns(requests: list[LoggedRequest]) -> list[tuple[str, set[str]]]:
    """Return server and prompts of each turn."""
    groups = groupby(requests, key=lambda request: request.server)
    return [(server, {request.prompt for request in group}) for server, group in groups]


def test_servers_take_turns_with_the_same_prompts_and_are_stopped(tmp_path: Path) -> None:
    result = run("compare.py", tmp_path, command(tmp_path, "a"), command(tmp_path, "b"), *SMALL)
    assert result.code == 0, result.err
    requests = logged_requests(tmp_path)
    order = turns(requests)
    assert [server for server, _ in order] == ["a", "b"] * 5  # warm-up, then two rounds at both concurrencies
    assert [len(prompts) for _, prompts in order] == [3, 3, 1, 1, 1, 1, 2, 2, 2, 2]
    for (_, prompts), (_, other_prompts) in zip(order[::2], order[1::2], strict=True):
        assert prompts == other_prompts
    sent = [request.prompt for request in requests if request.server == "a"]
    assert len(set(sent)) == len(sent)
    assert not any(psutil.pid_exists(request.pid) for request in requests)

    report = result.json
    assert report["schema"] == "aiochatstream-bench-compare"
    rounds, ratios = report["rounds"], report["ratios"]
    assert [(round_["server"], round_["concurrency"], round_["round"]) for round_ in rounds] == [
        (server, level, turn) for level in (1, 2) for turn in (1, 2) for server in ("a", "b")
    ]
    for round_ in rounds:
        assert (round_["ok"], round_["refused"], round_["failed"]) == (round_["concurrency"], 0, 0)
        assert round_["answer_tokens_mean"] == 4
    assert {(ratio["server"], ratio["baseline"]) for ratio in ratios} == {("b", "a")}
    assert all(len(ratio["pairs"]) == 2 and ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in ratios)
    assert "b / a" in result.out
    assert str(ROOT) not in json.dumps(report)
    assert str(tmp_path) not in json.dumps(report)
    assert sys.prefix not in json.dumps(report)


def test_child_processes_of_a_server_are_stopped(tmp_path: Path) -> None:
    child = tmp_path / "child"
    parent = command(tmp_path, "parent", "--child", str(child))
    result = run("compare.py", tmp_path, command(tmp_path, "a"), parent, *SMALL, forked=True)
    assert result.code == 0, result.err
    deadline = time.monotonic() + END_PATIENCE
    while is_running(int(child.read_text())):  # killed, and reaped by init
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_crashing_server_is_reported_and_the_others_continue(tmp_path: Path) -> None:
    crashing = command(tmp_path, "crashing", "--die-at", "5")
    result = run("compare.py", tmp_path, command(tmp_path, "a"), crashing, *SMALL, forked=True)
    assert result.code == 0, result.err
    servers = {server["name"]: server for server in result.json["servers"]}
    assert servers["a"]["reason"] is None
    assert servers["crashing"]["measured"]
    assert servers["crashing"]["reason"] == "exited with code 3 (last words)"
    assert list(servers["crashing"]["faults"].values()) == [1]
    rounds = result.json["rounds"]
    assert [(round_["ok"], round_["failed"]) for round_ in rounds if round_["server"] == "crashing"] == [(1, 0), (0, 1)]
    assert len([round_ for round_ in rounds if round_["server"] == "a"]) == 4
    assert "crashing: not measured further: exited with code 3" in result.out


def test_a_peer_that_is_not_installed_is_not_measured(tmp_path: Path) -> None:
    options = ["--peers", str(tmp_path), *SMALL]
    result = run("compare.py", tmp_path, "vllm", command(tmp_path, "b"), command(tmp_path, "a"), *options, forked=True)
    assert result.code == 0, result.err
    sentence = "not installed: python bench/peers.py install vllm"
    assert f"vllm: not measured: {sentence}" in result.out
    assert [(server["measured"], server["reason"]) for server in result.json["servers"]] == [
        (False, sentence),
        (True, None),
        (True, None),
    ]
    assert {(ratio["server"], ratio["baseline"]) for ratio in result.json["ratios"]} == {("a", "b")}
    assert "vllm was not measured: the baseline is b" in result.json["remarks"]


def test_a_round_that_exceeds_its_time_limit_is_cut_short(tmp_path: Path) -> None:
    options = "--concurrency 2 --rounds 1 --requests-per-client 1 --round-seconds 2 --max-tokens 4"
    holding = command(tmp_path, "holding", "--hold-at", "5")
    result = run("compare.py", tmp_path, command(tmp_path, "a"), holding, *options.split(), forked=True)
    assert result.code == 0, result.err
    round_ = result.json["rounds"][1]
    assert (round_["cut"], round_["requests"], round_["ok"], round_["failed"]) == (True, 2, 1, 0)
    assert round_["took_s"] >= 2
    assert not result.json["ratios"]
    assert "1 of 1 rounds exceeded the time limit" in result.json["remarks"][0]
    assert round_["answer_tokens_mean"] == 4


def test_ctrl_c_prints_the_results_so_far_and_stops_the_servers(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    servers = [command(tmp_path, "a"), command(tmp_path, "b", "--hold-at", "5")]
    line = [PYTHON, str(ROOT / "bench" / "compare.py"), *servers, *SMALL, "--json", str(file)]
    with running(line, tmp_path / "compare", env={"PYTHONPATH": str(ROOT)}, forked=True) as compare:
        compare.wait_for(lambda: len(logged_requests(tmp_path)) >= 10, "the request without an answer")
        assert compare.end(signal.SIGINT) == 130, compare.output
    assert "Interrupted: results so far." in compare.out
    assert "b / a" in compare.out
    report = json.loads(file.read_text())
    assert report["interrupted"]
    assert [(round_["server"], round_["round"]) for round_ in report["rounds"]] == [("a", 1), ("b", 1), ("a", 2)]
    assert not any(psutil.pid_exists(request.pid) for request in logged_requests(tmp_path))


def test_a_second_ctrl_c_kills_servers_that_ignore_sigterm(tmp_path: Path) -> None:
    b = command(tmp_path, "b", "--hold-at", "5").partition("=")[2]
    ignoring = f"trap '' TERM; {b} & while :; do sleep 1; done"
    servers = [f"b=/bin/sh -c {shlex.quote(ignoring)}", command(tmp_path, "a")]
    line = [PYTHON, str(ROOT / "bench" / "compare.py"), *servers, *SMALL]
    with running(line, tmp_path / "compare", env={"PYTHONPATH": str(ROOT)}, forked=True) as compare:
        compare.wait_for(
            lambda: sum(request.server == "b" for request in logged_requests(tmp_path)) == 5,
            "the request without an answer",
        )
        compare.popen.send_signal(signal.SIGINT)
        compare.wait_for(lambda: "stopping a" in compare.err, "the end")
        assert compare.end(signal.SIGINT) == 130, compare.output
    assert "Traceback" not in compare.err
    assert not any(is_running(request.pid) for request in logged_requests(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_that_end_a_script_stop_its_server(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "import os, time\nfrom common import run_script\nfrom server_process import running_process\n"
        "def main():\n"
        "    with running_process('sleep 600', {}, os.environ) as process:\n"
        "        print(process.popen.pid, flush=True)\n"
        "        time.sleep(600)\n"
        "run_script(main)"
    )
    folders = f"{ROOT}{os.pathsep}{ROOT / 'bench'}"
    with running([PYTHON, "-c", script], tmp_path / "script", env={"PYTHONPATH": folders}) as process:
        pid = int(process.wait_for(lambda: process.out.strip(), "pid"))
        assert process.end(number) == 130, process.output
    assert not is_running(pid)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["ours"], "a comparison requires two servers or more"),
        (["ours", "ours"], "two servers have the name ours"),
        (["ours", "nonsense"], "'nonsense' must be a preset"),
        (["ours", "x=http://"], "'http://' is not a URL"),
        (["ours", "x=sleep 5"], "a command must contain {port}"),
        (["ours", "x:gopher=http://127.0.0.1:9"], "not gopher"),
        (["ours", "vllm", "--baseline", "x"], "--baseline must name one of the servers (ours, vllm), not 'x'"),
        (["ours", "vllm", "--extra-body", "x={}"], "--extra-body must name one of the servers (ours, vllm), not 'x'"),
        (["ours", "vllm", "--rounds", "0"], "must be an integer from 1"),
        (["ours", "vllm", "--prompts", "nowhere"], "--prompts nowhere: must be built in"),
        (["x=http://127.0.0.1:{port}", "y={python} -c 0 {port}"], "x: http://127"),
        (["x=nosuchprogram {port}", "ours"], "x: program not found: nosuchprogram"),
        ([f"x={PYTHON} -c 'raise SystemExit(\"no\")' {{port}}", "ours"], "x: exited with code 1 (no)"),
        (["ours", "x=foo 'y {port}"], "no closing quotation"),
    ],
)
def test_wrong_use_is_an_error_of_one_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    words = [word.replace("127.0.0.1:{port}", f"127.0.0.1:{free_port()}") for word in options]
    result = run("compare.py", tmp_path, *words, forked=True)
    assert result.code == 2
    assert sentence in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


async def test_a_wrong_protocol_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    async with scripted(answer) as server:
        urls = [f"a={server.url}", f"b:text={server.url}"]
        result = await asyncio.to_thread(run, "compare.py", tmp_path, *urls, forked=True)
    assert result.code == 2
    assert "the answer is text/event-stream, not text/plain" in result.err.splitlines()[-1]


async def test_servers_at_urls_take_turns(tmp_path: Path) -> None:
    requests: list[str] = []

    async def script_a(exchange: Exchange) -> None:
        requests.append("a")
        await answer(exchange, 4)

    async def script_b(exchange: Exchange) -> None:
        requests.append("b")
        await answer(exchange, 4)

    async with scripted(script_a) as a, scripted(script_b) as b:
        result = await asyncio.to_thread(run, "compare.py", tmp_path, f"a={a.url}", f"b={b.url}", *SMALL)
    assert result.code == 0, result.err
    assert "".join(requests) == "aaabbb" + "abab" + "aabbaabb"


@pytest.fixture
def ratios(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of that name in bench/."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("ratios")


def test_ratios_compare_the_same_round_and_concurrency(ratios: ModuleType) -> None:
    def new_round(
        server: str, turn: int, rate: float, ttft: float | None, concurrency: int = 4, *, cut: bool = False
    ) -> Round:
        round_: Round = ratios.Round(
            server=server,
            concurrency=concurrency,
            round=turn,
            requests=8,
            ok=8,
            refused=0,
            failed=0,
            cut=cut,
            took_s=1.0,
            output_tokens_per_s=rate,
            requests_per_s=rate,
            ttft_s=None if ttft is None else Distribution(1, ttft, ttft, ttft, ttft, ttft),
            tpot_s=None,
            itl_s=None,
            e2e_s=None,
            queue_s=None,
            answer_tokens_mean=4.0,
            client_cpu=0.1,
        )
        return round_

    rounds = [
        *(new_round("a", 1, 10, 0.2), new_round("b", 1, 20, 0.1)),
        *(new_round("a", 2, 40, 0.1), new_round("b", 2, 60, None)),
        *(new_round("a", 3, 10, 0.1), new_round("b", 3, 10, 0.3)),
        new_round("a", 4, 50, 0.5),
        *(new_round("a", 5, 10, 0.1), new_round("b", 5, 90, 0.1, cut=True)),
        new_round("a", 1, 1, 0.1, concurrency=8),
    ]
    by_metric = {ratio["metric"]: ratio for ratio in ratios.ratios(rounds, "a")}
    rate, ttft = by_metric["output_tokens_per_s"], by_metric["ttft_p50"]
    assert (rate["server"], rate["baseline"], rate["concurrency"]) == ("b", "a", 4)
    assert rate["pairs"] == [2.0, 1.5, 1.0]
    assert (rate["median"], rate["low"], rate["high"]) == (1.5, 1.0, 2.0)
    assert ttft["pairs"] == pytest.approx([0.5, 3.0])
    assert "tpot_p50" not in by_metric
    assert "1.50 (1.00-2.00)" in ratios.render(rounds, "a")
