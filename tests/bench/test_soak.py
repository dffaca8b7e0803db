"""bench/soak.py, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench.script_runs import run
from tests.processes import PYTHON, ROOT, running


def check_results(report: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["word"] for check in report["verdict"]["checks"]}


def test_a_correct_server_passes(tmp_path: Path) -> None:
    growth = "1e9"  # some 200 requests, during which a server warms up, say nothing about its growth
    result = run("soak.py", tmp_path, "--minutes", "0.02", "--clients", "12", "--queue", "4", "--max-growth", growth)
    assert result.code == 0, result.out + result.err
    assert "RESULT: all passed" in result.out
    assert result.json["verdict"]["holds"]
    assert set(check_results(result.json).values()) == {"ok"}
    assert result.json["outcomes"]["completed"] > 0
    assert result.json["outcomes"]["refused"] > 0
    assert result.json["outcomes"]["aborted"] > 0
    for path in ("/chat_stream", "/v1/chat/completions"):
        assert 0 <= result.json["rest_s"][path] <= 5
        assert result.json["hung_up"][path]["disconnected"] > 0
        assert sum(result.json["hung_up"][path].values()) == 200
        assert f"{path}, 200 concurrent streams (" in result.out
    assert " requests, " in result.err


@pytest.mark.parametrize("family", ["llama", "lfm2"])
def test_answers_are_exact_with_little_memory(tmp_path: Path, family: str) -> None:
    options = ("--pressure", family, "--minutes", "0.02", "--hang-ups", "20")
    result = run("soak.py", tmp_path, *options, "--max-growth", "1e9", "--settle", "60", forked=True)
    assert result.code == 0, result.out + result.err
    assert set(check_results(result.json).values()) == {"ok"}
    assert {"answers", "memory in use", "memory lost", "no pressure"} <= check_results(result.json).keys()
    pressure = result.json["pressure"]
    assert pressure["answers"]["exact"] >= 16
    assert 4 * 512 - 16 <= pressure["cache_tokens"] <= 4 * 512 + 64
    assert pressure["peaks"]["kv_cache_used_tokens"] <= pressure["cache_tokens"]
    assert pressure["peaks"]["num_requests_waiting_for_memory"] > 0
    assert "answers to fixed prompts: " in result.out


def test_a_leaky_server_fails_each_check(tmp_path: Path) -> None:
    with running([PYTHON, "-m", "tests.bench.leaky_server"], tmp_path / "server", forked=True) as server:
        url = server.wait_for(lambda: server.out.strip(), "URL")
        options = ("--minutes", "0.02", "--settle", "0.5")
        result = run("soak.py", tmp_path, url, "--pid", str(server.popen.pid), *options, forked=True)
    assert result.code == 1, result.out + result.err
    assert "RESULT: FAILED" in result.out
    failed = {name for name, word in check_results(result.json).items() if word == "FAILED"}
    rest = {"rest, /chat_stream", "rest, /v1/chat/completions"}
    assert failed == {"server errors", "histories", "gauges", *rest, "memory", "open files", "threads"}


def test_a_killed_server_fails_immediately(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    with running([PYTHON, "-m", "tests.bench.leaky_server"], tmp_path / "server", forked=True) as server:
        url, pid = server.wait_for(lambda: server.out.strip(), "URL"), str(server.popen.pid)
        line = [PYTHON, str(ROOT / "bench" / "soak.py"), url, "--pid", pid, "--minutes", "60", "--json", str(file)]
        with running(line, tmp_path / "soak", env={"PYTHONPATH": str(ROOT)}, forked=True) as soak:
            soak.wait_for(lambda: " requests, " in soak.err, "the traffic")
            server.popen.kill()  # a zombie until it is waited for
            assert soak.wait_ended() == 1, soak.output
    assert "the server process exited" in soak.err
    assert "Traceback" not in soak.err
    results = check_results(json.loads(file.read_text()))
    assert (results["server alive"], results["gauges"]) == ("FAILED", "FAILED")
    assert (results["open files"], results["threads"]) == ("not measured", "not measured")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["http://127.0.0.1:9"], "cannot connect: Connection refused"),
        (["http://127.0.0.1:9", "--pid", "2147483647"], "--pid 2147483647: no such process."),
        (["--pid", "5"], "--pid requires a URL"),
        (["http://127.0.0.1:9", "--pressure", "llama"], "--pressure starts its own server"),
    ],
)
def test_wrong_use_is_an_error_of_one_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    result = run("soak.py", tmp_path, *options, forked=True)
    assert result.code == 2
    assert sentence in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
