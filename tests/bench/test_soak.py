"""bench/soak.py as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.scripts import run
from tests.processes import PYTHON, running


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
    assert " requests, " in ran.err


def test_a_server_that_leaks_fails_in_each_point(tmp_path: Path) -> None:
    with running([PYTHON, "-m", "tests.bench.leaking"], tmp_path / "server") as server:
        url = server.wait_for(lambda: server.out.strip(), "URL")
        ran = run("soak.py", tmp_path, url, "--pid", str(server.popen.pid), "--minutes", "0.02", "--settle", "0.5")
    assert ran.code == 1, ran.out + ran.err
    assert "VERDICT: FAILED" in ran.out
    failed = {name for name, word in words(ran.json).items() if word == "FAILED"}
    assert failed == {"server errors", "histories", "gauges", "memory", "open files", "threads"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [(["http://127.0.0.1:9"], "tells no load"), (["--pid", "5"], "--pid goes with a URL")],
)
def test_wrong_use_is_told_in_one_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    ran = run("soak.py", tmp_path, *options)
    assert ran.code == 2
    assert sentence in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err
