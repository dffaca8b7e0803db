"""Test of the trial on a GPU, on a CPU with tiny models."""

from __future__ import annotations

import pytest
import torch

from tests.gpu import try_gpu


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers, about the trial's tokenizer
def test_the_trial_passes_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert try_gpu.main(["--device", "cpu", "--tiny", "--skip-compile"]) == 0
    finally:
        torch.set_num_threads(threads)
    output = capsys.readouterr().out
    assert output.count(" passed: ") == 7
    assert output.count("tokens/s") == 4
    assert "FAILED" not in output
