"""bench/engine.py, as a user runs it, with a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.script_runs import run
from tests.engines.transformers.checkpoints import save_model
from tests.engines.transformers.tiny_models import BYTES


def test_engine_and_plain_generate_and_the_floor_are_measured(tmp_path: Path) -> None:
    lengths = "--prompts 16,999999 --contexts 16 --batches 2 --histories 16 --stall-prompt 300 --stall-answers 2"
    hybrids = "--hybrids lfm2 --hybrid-rows 1,2 --cached 2,300"
    options = f"{lengths} {hybrids} --document 2000 --steps 2 --rounds 1 --read-mib 64"
    model = save_model(tmp_path / "model", max_position_embeddings=8192)
    BYTES.save_pretrained(model)
    result = run("engine.py", tmp_path, "--model", str(model), *options.split())
    assert result.code == 0, result.err
    rows = {(row["part"], row["unit"]): row for row in result.json["rows"]}
    assert set(rows) == {
        ("prefill", "tokens/s"),
        ("decode", "ms/step"),
        ("decode", "tokens/s"),
        ("batch", "tokens/s"),
        ("batch", "ms/step"),
        ("turns", "ms to first token"),
    }
    assert all(len(row["engine"]) == len(row["plain"]) == 1 for row in rows.values())
    assert 0 < result.json["floor_ms"] < rows["decode", "ms/step"]["engine"][0]
    assert result.json["floor_ms"] == result.json["weight_bytes"] / result.json["bandwidth_bytes_per_s"] * 1000
    (users,) = result.json["users"]
    assert users["tokens"] == 16
    assert all(time > 0 for time in users.values())
    (stall,) = result.json["stalls"]
    assert (stall["answers"], stall["prompt"]) == (2, 300)
    assert stall["ratio"] == pytest.approx(stall["p99 during, ms"] / stall["p50 before, ms"])
    (beside,) = result.json["besides"]
    assert beside["tokens"] == 2000
    for name in ("question", "document"):
        ratio = beside[f"{name} beside, ms"] / beside[f"{name} alone, ms"]
        assert beside[f"{name} beside/alone"] == pytest.approx(ratio)
        assert f"{name} beside/alone" in result.out
    (profile,) = result.json["profiles"]
    assert profile["rows"] == 2
    step = profile.pop("step")
    assert 0 < profile["linear layers alone"] < step
    parts = ("linear layers", "attention", "rest of the model", "sampling", "preparing")
    assert sum(profile[part] for part in parts) == pytest.approx(step)
    single, pair = result.json["hybrids"]
    assert (single["hybrid"], single["rows"], pair["rows"]) == ("lfm2", 1, 2)
    assert single["parameters, M"] == pytest.approx(108, abs=1)
    assert single["growth"] == 1
    assert pair["growth"] == pytest.approx(pair["step, ms"] / single["step, ms"])
    few, many = result.json["lookups"]
    assert (few["sequences"], many["sequences"]) == (2, 300)
    for kind in ("cached prompt", "new prompt"):
        assert many[f"{kind}, ratio"] == pytest.approx(many[f"{kind}, us"] / few[f"{kind}, us"])
    (chats,) = result.json["chats"]
    assert (chats["chats"], chats["at once"]) == (16, 16)
    assert chats["context, tokens"] == 2048
    assert chats["KV cache, tokens"] == 4 * 2048
    assert 0 < chats["in use, tokens"] <= 16 * 64  # prompts of 30 tokens and answers of 32 in blocks of 16
    assert "in use/whole" in result.out
    assert "the floor of a step" in result.out
    assert result.json["left_out"] == [
        "prefill of 999999 tokens is skipped: the model's limit is 8192 tokens, including 1 more"
    ]


def test_a_missing_model_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    result = run("engine.py", tmp_path, "--model", str(tmp_path / "nothing"), forked=True)
    assert result.code == 2
    assert "There is no folder" in result.err.splitlines()[-1]
