"""bench/overhead.py as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.script_runs import run


def test_it_measures_both_sides_and_the_memory_of_clients(tmp_path: Path) -> None:
    parts = "--parts answers latency memory conversations"
    options = f"{parts} --clients 4 --pieces 20 --seconds 0.1 --rounds 2 --held 20 --conversations 2000"
    ran = run("overhead.py", tmp_path, *options.split(), "--peers", "nowhere")
    assert ran.code == 0, ran.err
    assert "chatstream: not measured: not installed: python bench/peers.py install chatstream" in ran.out
    assert "uvloop" in ran.json["environment"]
    assert "peers" not in ran.json["parameters"]
    assert ran.json["schema"] == "aiochatstream-bench-overhead"
    assert ran.json["command"] == f"python bench/overhead.py {options} --peers nowhere --json results.json"
    for wire in ("text", "sse"):
        measured = ran.json["answers"][wire]
        assert {side: len(rounds) for side, rounds in measured["rounds"].items()} == {
            "ours": 2,
            "bare": 2,
            "at once": 2,
        }
        for one in measured["rounds"]["ours"]:
            assert one["chunks_per_s"] == pytest.approx(20 * one["answers_per_s"])
        assert measured["answers_ratio"]["low"] <= measured["answers_ratio"]["median"]
        assert f"{wire} ours / bare" in ran.out
        assert f"{wire} ours / at once" in ran.out
    assert set(ran.json["latency_s"]) == {"text ours", "text bare", "sse ours", "sse bare"}
    assert all(told["count"] >= 80 and told["count"] % 80 == 0 for told in ran.json["latency_s"].values())
    assert set(ran.json["memory_kib_per_client"]) == {"waiting", "streaming", "bare, streaming"}
    told = ran.json["conversation_bytes"]
    assert told["in all"] == pytest.approx(told["above the text"] + 4 * 500)


@pytest.mark.parametrize("options", [["--seconds", "nan"], ["--clients", "2000"]])
def test_wrong_use_is_told_in_one_sentence(tmp_path: Path, options: list[str]) -> None:
    ran = run("overhead.py", tmp_path, *options)
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith("overhead.py: error: ")
    assert "Traceback" not in ran.err
