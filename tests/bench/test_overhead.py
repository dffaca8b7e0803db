"""bench/overhead.py, as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.script_runs import run


def test_both_servers_and_the_memory_of_clients_are_measured(tmp_path: Path) -> None:
    parts = "--parts answers latency memory conversations"
    options = f"{parts} --clients 4 --pieces 20 --seconds 0.1 --rounds 2 --held 20 --conversations 2000"
    result = run("overhead.py", tmp_path, *options.split(), "--peers", "nowhere")
    assert result.code == 0, result.err
    assert "chatstream: not measured: not installed: python bench/peers.py install chatstream" in result.out
    assert "uvloop" in result.json["environment"]
    assert "peers" not in result.json["parameters"]
    assert result.json["schema"] == "aiochatstream-bench-overhead"
    assert result.json["command"] == f"python bench/overhead.py {options} --peers nowhere --json results.json"
    for wire in ("text", "sse"):
        answers = result.json["answers"][wire]
        assert {server: len(rounds) for server, rounds in answers["rounds"].items()} == {
            "ours": 2,
            "bare": 2,
            "at once": 2,
        }
        for figures in answers["rounds"]["ours"]:
            assert figures["chunks_per_s"] == pytest.approx(20 * figures["answers_per_s"])
        assert answers["answers_ratio"]["low"] <= answers["answers_ratio"]["median"]
        assert f"{wire} ours / bare" in result.out
        assert f"{wire} ours / at once" in result.out
    assert set(result.json["latency_s"]) == {"text ours", "text bare", "sse ours", "sse bare"}
    assert all(times["count"] >= 80 and times["count"] % 80 == 0 for times in result.json["latency_s"].values())
    assert set(result.json["memory_kib_per_client"]) == {"waiting", "streaming", "bare, streaming"}
    sizes = result.json["conversation_bytes"]
    assert sizes["in all"] == pytest.approx(sizes["above the text"] + 4 * 500)


@pytest.mark.parametrize("options", [["--seconds", "nan"], ["--clients", "2000"]])
def test_wrong_use_is_an_error_of_one_sentence(tmp_path: Path, options: list[str]) -> None:
    result = run("overhead.py", tmp_path, *options, forked=True)
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("overhead.py: error: ")
    assert "Traceback" not in result.err
