"""bench/soak.py as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.script_runs import run
from tests.processes import PYTHON, ROOT, running


def words(results: dict[str, dict[str, list[dict[str, str]]]]) -> dict[str, str]:
    return {check["name"]: check["word"] for check in results["verdict"]["checks"]}


def test_a_sound_server_passes(tmp_path: Path) -> None:
    ran = run("soak.py", tmp_path, "--minutes", "0.02", "--clients", "12", "--queue", "4", "--max-growth", "50000")
    assert ran.code == 0, ran.out + ran.err
    assert "VERDICT: all holds" in ran.out
    assert ran.json["verdict"]["holds"]
    assert set(words(ran.json).values()) == {"ok"}
    assert ran.json["outcomes"]["completed"] > 0
    assert ran.json["outcomes"]["refused"] > 0
    assert ran.json["outcomes"]["aborted"] > 0
    for path in ("/chat_stream", "/v1/chat/completions"):
        assert 0 <= ran.json["rest_s"][path] <= 5
        assert ran.json["hung_up"][path]["hung up"] > 0
        assert sum(ran.json["hung_up"][path].values()) == 200
        assert f"{path}, 200 streams at once (" in ran.out
    assert " requests, " in ran.err


def test_a_server_that_leaks_fails_in_each_point(tmp_path: Path) -> None:
    with running([PYTHON, "-m", "tests.bench.leaky_server"], tmp_path / "server") as server:
        url = server.wait_for(lambda: server.out.strip(), "URL")
        ran = run("soak.py", tmp_path, url, "--pid", str(server.popen.pid), "--minutes", "0.02", "--settle", "0.5")
    assert ran.code == 1, ran.out + ran.err
    assert "VERDICT: FAILED" in ran.out
    failed = {name for name, word in words(ran.json).items() if word == "FAILED"}
    rest = {"rest, /chat_stream", "rest, /v1/chat/completions"}
    assert failed == {"server errors", "histories", "gauges", *rest, "memory", "open files", "threads"}


def test_a_server_that_dies_fails_the_soak_at_once(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    with running([PYTHON, "-m", "tests.bench.leaky_server"], tmp_path / "server") as server:
        url, pid = server.wait_for(lambda: server.out.strip(), "URL"), str(server.popen.pid)
        line = [PYTHON, str(ROOT / "bench" / "soak.py"), url, "--pid", pid, "--minutes", "60", "--json", str(file)]
        with running(line, tmp_path / "soak", env={"PYTHONPATH": str(ROOT)}) as soak:
            soak.wait_for(lambda: " requests, " in soak.err, "the traffic")
            server.popen.kill()  # and it stays a zombie for now
            assert soak.wait_ended() == 1, soak.output
    assert "the server process ended" in soak.err
    assert "Traceback" not in soak.err
    told = words(json.loads(file.read_text()))
    assert (told["server alive"], told["gauges"]) == ("FAILED", "FAILED")
    assert (told["open files"], told["threads"]) == ("not measured", "not measured")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["http://127.0.0.1:9"], "cannot connect: Connection refused"),
        (["http://127.0.0.1:9", "--pid", "2147483647"], "--pid 2147483647: there is no such process."),
        (["--pid", "5"], "--pid goes with a URL"),
    ],
)
def test_wrong_use_is_told_in_one_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    ran = run("soak.py", tmp_path, *options)
    assert ran.code == 2
    assert sentence in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err
