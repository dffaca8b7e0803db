"""bench/quality.py, as a user runs it, with a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.script_runs import run
from tests.engines.transformers.checkpoints import save_gguf


@pytest.mark.slow
def test_precisions_are_compared_with_float32(tmp_path: Path) -> None:
    model = save_gguf(tmp_path / "model.gguf")
    result = run("quality.py", tmp_path, "--model", str(model), "--tokens", "16", "--max-tokens", "2", forked=True)
    assert result.code == 0, result.err
    float32, bfloat16, int8 = result.json["results"]
    assert (float32["precision"], float32["kl_mean"], float32["same_top"]) == ("float32", None, None)
    for precision in (bfloat16, int8):
        assert 0 <= precision["kl_mean"] < 0.1
        assert precision["kl_mean"] <= precision["kl_p99"]
        assert 0.8 <= precision["same_top"] <= 1
        assert precision["nll"] == pytest.approx(float32["nll"], abs=0.1)
        assert len(precision["answers"]) == len(result.json["questions"]) == 3


def test_a_missing_model_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    result = run("quality.py", tmp_path, "--model", "./nothing", forked=True)
    assert (result.code, result.err) == (2, "There is no folder nothing.\n")
