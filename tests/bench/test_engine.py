"""bench/engine.py as a user runs it, with the real small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.script_runs import run


def test_it_measures_the_engine_beside_plain_generate_and_the_floor(tmp_path: Path) -> None:
    lengths = "--prompts 16,999999 --contexts 16 --batches 2 --histories 16 --stall-prompt 300 --stall-answers 2"
    ran = run("engine.py", tmp_path, *lengths.split(), *["--steps", "2", "--rounds", "1", "--read-mib", "64"])
    assert ran.code == 0, ran.err
    rows = {(row["part"], row["unit"]): row for row in ran.json["rows"]}
    assert set(rows) == {
        ("prefill", "tokens/s"),
        ("decode", "ms/step"),
        ("decode", "tokens/s"),
        ("batch", "tokens/s"),
        ("batch", "ms/step"),
        ("turns", "ms to first token"),
    }
    assert all(len(row["engine"]) == len(row["plain"]) == 1 for row in rows.values())
    assert 0 < ran.json["floor_ms"] < rows["decode", "ms/step"]["engine"][0]
    assert ran.json["floor_ms"] == ran.json["weight_bytes"] / ran.json["bandwidth_bytes_per_s"] * 1000
    (users,) = ran.json["users"]
    assert users["tokens"] == 16
    assert all(time > 0 for time in users.values())
    (stall,) = ran.json["stalls"]
    assert (stall["answers"], stall["prompt"]) == (2, 300)
    assert stall["ratio"] == pytest.approx(stall["p99 meanwhile, ms"] / stall["p50 before, ms"])
    (profile,) = ran.json["profiles"]
    assert profile["rows"] == 2
    step = profile.pop("step")
    assert 0 < profile["linear layers alone"] < step
    parts = ("linear layers", "attention", "rest of the model", "sampling", "preparing")
    assert sum(profile[part] for part in parts) == pytest.approx(step)
    assert "the floor of a step" in ran.out
    assert ran.json["left_out"] == [
        "prefill of 999999 tokens is left out: the model has room for 8192, and 1 more are needed"
    ]


def test_a_model_that_is_not_there_is_told_in_one_sentence(tmp_path: Path) -> None:
    ran = run("engine.py", tmp_path, "--model", str(tmp_path / "nothing"))
    assert ran.code == 2
    assert "There is no folder" in ran.err.splitlines()[-1]
