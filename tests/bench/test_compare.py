"""bench/compare.py as a user runs it, with servers that do what the test says."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shlex
import signal
import sys
import time
from itertools import groupby
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from aiochatstream.bench.metrics import Distribution
from tests.bench.script_runs import run
from tests.bench.scripted_server import Exchange, answer, scripted
from tests.processes import END_PATIENCE, PYTHON, ROOT, free_port, running

FEW = ["--concurrency", "1,2", "--rounds", "2", "--requests-per-client", "1", "--max-tokens", "4"]


def command(folder: Path, name: str, *options: str) -> str:
    words = [PYTHON, "-m", "tests.bench.fake_server", "--name", name, "--notes", str(folder / "notes"), *options]
    return f"{name}={shlex.join(words)} --port {{port}}"


def notes(folder: Path) -> list[tuple[str, int, str]]:
    """Who was asked, with its process, and what; in the order of the requests."""
    return [tuple(json.loads(line)) for line in (folder / "notes").read_text().splitlines()]


def turns(asked: list[tuple[str, int, str]]) -> list[tuple[str, set[str]]]:
    return [(name, {prompt for _, _, prompt in group}) for name, group in groupby(asked, key=lambda note: note[0])]


def test_servers_take_turns_with_the_same_prompts_and_are_stopped(tmp_path: Path) -> None:
    ran = run("compare.py", tmp_path, command(tmp_path, "a"), command(tmp_path, "b"), *FEW)
    assert ran.code == 0, ran.err
    asked = notes(tmp_path)
    taken = turns(asked)
    assert [name for name, _ in taken] == ["a", "b"] * 5  # getting ready, then two rounds at both concurrencies
    assert [len(prompts) for _, prompts in taken] == [3, 3, 1, 1, 1, 1, 2, 2, 2, 2]
    for mine, theirs in zip(taken[::2], taken[1::2], strict=True):
        assert mine[1] == theirs[1]
    said = [prompt for name, _, prompt in asked if name == "a"]
    assert len(set(said)) == len(said)
    assert not any(psutil.pid_exists(pid) for _, pid, _ in asked)

    told = ran.json
    assert told["schema"] == "aiochatstream-bench-compare"
    assert [(one["server"], one["concurrency"], one["round"]) for one in told["rounds"]] == [
        (name, level, turn) for level in (1, 2) for turn in (1, 2) for name in ("a", "b")
    ]
    assert all((one["ok"], one["refused"], one["failed"]) == (one["concurrency"], 0, 0) for one in told["rounds"])
    assert {one["answer_tokens_mean"] for one in told["rounds"]} == {4}
    assert {(one["server"], one["baseline"]) for one in told["ratios"]} == {("b", "a")}
    assert all(len(one["pairs"]) == 2 and one["low"] <= one["median"] <= one["high"] for one in told["ratios"])
    assert "b / a" in ran.out
    assert str(ROOT) not in json.dumps(told)
    assert str(tmp_path) not in json.dumps(told)
    assert sys.prefix not in json.dumps(told)


def test_what_a_server_started_is_stopped_with_it(tmp_path: Path) -> None:
    child = tmp_path / "child"
    parent = command(tmp_path, "parent", "--child", str(child))
    ran = run("compare.py", tmp_path, command(tmp_path, "a"), parent, *FEW)
    assert ran.code == 0, ran.err
    deadline = time.monotonic() + END_PATIENCE
    while runs(int(child.read_text())):  # it was killed, but is nobody's child any more
        assert time.monotonic() < deadline
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_server_that_dies_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    dying = command(tmp_path, "dying", "--die-at", "5")
    ran = run("compare.py", tmp_path, command(tmp_path, "a"), dying, *FEW)
    assert ran.code == 0, ran.err
    told = {server["name"]: server for server in ran.json["servers"]}
    assert told["a"]["reason"] is None
    assert told["dying"]["measured"]
    assert told["dying"]["reason"] == "it ended with exit code 3 (this is my end)"
    assert list(told["dying"]["faults"].values()) == [1]
    rounds = ran.json["rounds"]
    assert [(one["ok"], one["failed"]) for one in rounds if one["server"] == "dying"] == [(1, 0), (0, 1)]
    assert len([one for one in rounds if one["server"] == "a"]) == 4
    assert "dying: not measured further: it ended" in ran.out


def test_a_peer_that_is_not_installed_is_not_measured(tmp_path: Path) -> None:
    options = ["--peers", str(tmp_path), *FEW]
    ran = run("compare.py", tmp_path, "vllm", command(tmp_path, "b"), command(tmp_path, "a"), *options)
    assert ran.code == 0, ran.err
    sentence = "not installed: python bench/peers.py install vllm"
    assert f"vllm: not measured: {sentence}" in ran.out
    assert [(one["measured"], one["reason"]) for one in ran.json["servers"]] == [
        (False, sentence),
        (True, None),
        (True, None),
    ]
    assert {(one["server"], one["baseline"]) for one in ran.json["ratios"]} == {("a", "b")}
    assert "vllm was not measured: the baseline is b" in ran.json["remarks"]


def test_a_round_that_takes_too_long_is_cut(tmp_path: Path) -> None:
    options = "--concurrency 2 --rounds 1 --requests-per-client 1 --round-seconds 2 --max-tokens 4"
    holding = command(tmp_path, "holding", "--hold-at", "5")
    ran = run("compare.py", tmp_path, command(tmp_path, "a"), holding, *options.split())
    assert ran.code == 0, ran.err
    one = ran.json["rounds"][1]
    assert (one["cut"], one["requests"], one["ok"], one["failed"]) == (True, 2, 1, 0)
    assert one["took_s"] >= 2
    assert not ran.json["ratios"]
    assert "1 of 1 rounds took too long and were cut" in ran.json["remarks"][0]
    assert one["answer_tokens_mean"] == 4


def test_ctrl_c_prints_what_was_measured_and_stops_what_was_started(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    servers = [command(tmp_path, "a"), command(tmp_path, "b", "--hold-at", "5")]
    line = [PYTHON, str(ROOT / "bench" / "compare.py"), *servers, *FEW, "--json", str(file)]
    with running(line, tmp_path / "compare", env={"PYTHONPATH": str(ROOT)}) as compare:
        noted = tmp_path / "notes"
        compare.wait_for(lambda: noted.exists() and len(notes(tmp_path)) >= 10, "the request that is held")
        assert compare.end(signal.SIGINT) == 130, compare.output
    assert "Interrupted: this is what was measured so far." in compare.out
    assert "b / a" in compare.out
    told = json.loads(file.read_text())
    assert told["interrupted"]
    assert [(one["server"], one["round"]) for one in told["rounds"]] == [("a", 1), ("b", 1), ("a", 2)]
    assert not any(psutil.pid_exists(pid) for _, pid, _ in notes(tmp_path))


def test_a_second_ctrl_c_does_not_wait_for_those_that_do_not_hear(tmp_path: Path) -> None:
    deaf = f"trap '' TERM; {command(tmp_path, 'b', '--hold-at', '5').partition('=')[2]} & while :; do sleep 1; done"
    servers = [f"b=/bin/sh -c {shlex.quote(deaf)}", command(tmp_path, "a")]
    line = [PYTHON, str(ROOT / "bench" / "compare.py"), *servers, *FEW]
    with running(line, tmp_path / "compare", env={"PYTHONPATH": str(ROOT)}) as compare:
        noted = tmp_path / "notes"
        compare.wait_for(
            lambda: noted.exists() and [name for name, _, _ in notes(tmp_path)].count("b") == 5, "the request held"
        )
        compare.popen.send_signal(signal.SIGINT)
        compare.wait_for(lambda: "stopping a" in compare.err, "the end")
        assert compare.end(signal.SIGINT) == 130, compare.output
    assert "Traceback" not in compare.err
    assert not any(runs(pid) for _, pid, _ in notes(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_whatever_ends_a_script_ends_what_it_started(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "import os, time\nfrom common import run_script\nfrom server_process import program\n"
        "def main():\n"
        "    with program('sleep 600', {}, os.environ) as started:\n"
        "        print(started.popen.pid, flush=True)\n"
        "        time.sleep(600)\n"
        "run_script(main)"
    )
    folders = f"{ROOT}{os.pathsep}{ROOT / 'bench'}"
    with running([PYTHON, "-c", script], tmp_path / "script", env={"PYTHONPATH": folders}) as started:
        pid = int(started.wait_for(lambda: started.out.strip(), "number"))
        assert started.end(number) == 130, started.told
    assert not runs(pid)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["ours"], "a comparison needs two servers or more"),
        (["ours", "ours"], "two servers have one name (ours)"),
        (["ours", "nonsense"], "'nonsense' is neither a preset"),
        (["ours", "x=http://"], "'http://' is not a URL"),
        (["ours", "x=sleep 5"], "a command needs {port}"),
        (["ours", "x:gopher=http://127.0.0.1:9"], "there is no protocol gopher"),
        (["ours", "vllm", "--baseline", "x"], "--baseline names 'x', which is none of the servers (ours, vllm)"),
        (["ours", "vllm", "--extra-body", "x={}"], "--extra-body names 'x'"),
        (["ours", "vllm", "--rounds", "0"], "must be a whole number from 1"),
        (["ours", "vllm", "--prompts", "nowhere"], "--prompts nowhere: neither built in"),
        (["x=http://127.0.0.1:{port}", "y={python} -c 0 {port}"], "x: http://127"),
        (["x=nosuchprogram {port}", "ours"], "x: there is no program nosuchprogram"),
        ([f"x={PYTHON} -c 'raise SystemExit(\"no\")' {{port}}", "ours"], "x: it ended with exit code 1 (no)"),
        (["ours", "x=foo 'y {port}"], "no closing quotation"),
    ],
)
def test_wrong_use_is_told_in_one_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    words = [word.replace("127.0.0.1:{port}", f"127.0.0.1:{free_port()}") for word in options]
    ran = run("compare.py", tmp_path, *words)
    assert ran.code == 2
    assert sentence in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err


async def test_a_wrong_protocol_is_told_in_one_sentence(tmp_path: Path) -> None:
    async def plain(exchange: Exchange) -> None:
        await answer(exchange)

    async with scripted(plain) as server:
        urls = [f"a={server.url}", f"b:text={server.url}"]
        ran = await asyncio.to_thread(run, "compare.py", tmp_path, *urls)
    assert ran.code == 2
    assert "the answer is text/event-stream, not text/plain" in ran.err.splitlines()[-1]


async def test_servers_at_urls_are_asked_in_turn(tmp_path: Path) -> None:
    asked: list[str] = []

    async def a(exchange: Exchange) -> None:
        asked.append("a")
        await answer(exchange, 4)

    async def b(exchange: Exchange) -> None:
        asked.append("b")
        await answer(exchange, 4)

    async with scripted(a) as one, scripted(b) as other:
        ran = await asyncio.to_thread(run, "compare.py", tmp_path, f"a={one.url}", f"b={other.url}", *FEW)
    assert ran.code == 0, ran.err
    assert "".join(asked) == "aaabbb" + "abab" + "aabbaabb"


@pytest.fixture
def ratios(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    spec = importlib.util.find_spec("ratios")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ratios", module)
    spec.loader.exec_module(module)
    return module


def test_ratios_are_of_the_same_round_and_concurrency(ratios: ModuleType) -> None:
    def one(
        server: str, turn: int, rate: float, ttft: float | None, concurrency: int = 4, *, cut: bool = False
    ) -> object:
        known = None if ttft is None else Distribution(1, ttft, ttft, ttft, ttft, ttft)
        counts = {"requests": 8, "ok": 8, "refused": 0, "failed": 0, "cut": cut, "took_s": 1.0}
        times = {"ttft_s": known, "tpot_s": None, "itl_s": None, "e2e_s": None, "queue_s": None}
        rates = {"output_tokens_per_s": rate, "requests_per_s": rate, "answer_tokens_mean": 4.0, "client_cpu": 0.1}
        return ratios.Round(server=server, concurrency=concurrency, round=turn, **counts, **times, **rates)

    rounds = [
        *(one("a", 1, 10, 0.2), one("b", 1, 20, 0.1)),
        *(one("a", 2, 40, 0.1), one("b", 2, 60, None)),
        *(one("a", 3, 10, 0.1), one("b", 3, 10, 0.3)),
        one("a", 4, 50, 0.5),
        *(one("a", 5, 10, 0.1), one("b", 5, 90, 0.1, cut=True)),
        one("a", 1, 1, 0.1, concurrency=8),
    ]
    found = {one["metric"]: one for one in ratios.ratios(rounds, "a")}
    rate, ttft = found["output_tokens_per_s"], found["ttft_p50"]
    assert (rate["server"], rate["baseline"], rate["concurrency"]) == ("b", "a", 4)
    assert rate["pairs"] == [2.0, 1.5, 1.0]
    assert (rate["median"], rate["low"], rate["high"]) == (1.5, 1.0, 2.0)
    assert ttft["pairs"] == pytest.approx([0.5, 3.0])
    assert "tpot_p50" not in found
    assert "1.50 (1.00-2.00)" in ratios.render(rounds, "a")
