"""Tests of the measurement of dtypes, and of its cache."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from aiochatstream.engines.transformers.cpu import dtype_trial
from aiochatstream.engines.transformers.cpu.dtype_trial import LinearShape, answer_seconds, linear_shapes
from aiochatstream.engines.transformers.cpu.packed_linear import prepack_linears
from tests.engines.transformers.tiny_models import tiny

SHAPES = (LinearShape(32, 64, 2), LinearShape(32, 2**20, 1, is_head=True))
"""Shapes of a tiny model with an output layer that is measured in part."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache."""
    monkeypatch.setattr(dtype_trial, "user_cache_path", lambda name: tmp_path / name)
    return tmp_path / "aiochatstream" / "dtypes"


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes that were measured. bfloat16 takes 3 s, others 1 s."""
    dtypes: list[torch.dtype] = []

    def measure(shapes: object, dtype: torch.dtype) -> float:
        dtypes.append(dtype)
        return 3.0 if dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(dtype_trial, "_measure", measure)
    return dtypes


def test_each_dtype_is_measured_once(folder: Path, measurements: list[torch.dtype]) -> None:
    for _ in range(2):
        assert (answer_seconds(SHAPES, torch.float32), answer_seconds(SHAPES, torch.bfloat16)) == (1.0, 3.0)
    assert measurements == [torch.float32, torch.bfloat16]
    assert len([*folder.glob("*.json")]) == len([*folder.iterdir()]) - 1 == 2  # and the lock


def test_other_shapes_and_another_cpu_are_measured_anew(
    measurements: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_seconds(SHAPES, torch.float32)
    answer_seconds(SHAPES[:1], torch.float32)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    answer_seconds(SHAPES, torch.float32)
    assert len(measurements) == 3


@pytest.mark.parametrize("content", ["", "[", "null", "-1", "NaN", "\x00"])
def test_unreadable_files_are_measured_anew(folder: Path, measurements: list[torch.dtype], content: str) -> None:
    answer_seconds(SHAPES, torch.float32)
    (file,) = folder.glob("*.json")
    file.write_text(content)
    assert (answer_seconds(SHAPES, torch.float32), len(measurements)) == (1.0, 2)
    assert (answer_seconds(SHAPES, torch.float32), len(measurements)) == (1.0, 2)


def test_without_a_folder_each_call_measures(folder: Path, measurements: list[torch.dtype]) -> None:
    folder.parent.mkdir()
    folder.write_text("a file")
    for _ in range(2):
        assert answer_seconds(SHAPES, torch.float32) == 1.0
    assert len(measurements) == 2


def test_the_fastest_dtype_is_chosen_and_the_reason_is_logged(
    measurements: list[torch.dtype], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert dtype_trial.fastest_dtype(SHAPES) == torch.float32
    assert "dtype: float32, by measuring" in caplog.text
    assert "1 s in float32 and 3 s in bfloat16" in caplog.text
    assert dtype_trial.is_slow(SHAPES, torch.bfloat16)
    assert not dtype_trial.is_slow(SHAPES, torch.float16)
    assert not dtype_trial.is_slow(SHAPES, torch.float32)


def test_bfloat16_which_takes_half_the_memory_is_chosen_unless_it_is_clearly_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: 1.05}
    monkeypatch.setattr(dtype_trial, "answer_seconds", lambda shapes, dtype: seconds[dtype])
    assert dtype_trial.fastest_dtype(SHAPES) == torch.bfloat16


def test_a_dtype_without_kernels_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(shapes: object, dtype: torch.dtype) -> list[float]:
        if dtype == torch.bfloat16:
            raise RuntimeError("no kernel")
        return [1.0, 1.0, 1.0]

    monkeypatch.setattr(dtype_trial, "_step_seconds", fail)
    for _ in range(2):  # measured, and from the cache
        assert answer_seconds(SHAPES, torch.bfloat16) == float("inf")
        assert dtype_trial.fastest_dtype(SHAPES) == torch.float32


def test_times_are_extrapolated_to_all_layers_and_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def seconds(models: Sequence[Sequence[dtype_trial.Layer]], inputs: Sequence[torch.Tensor]) -> list[float]:
        outputs = [layer(part).shape[-1] for layer, part in zip(models[0], inputs, strict=True)]
        measured.append((len(models), len(inputs[0]), outputs))
        return [1.0, 10.0]

    monkeypatch.setattr(dtype_trial, "_layer_seconds", seconds)
    size = dtype_trial.MAX_WEIGHTS // 32
    head = 10.0 * 2**20 / size
    assert dtype_trial._step_seconds(SHAPES, torch.float32) == [2.0 + head, 2.0 + head, 2.0]
    sizes = [64, size]
    assert measured == [(2, 1, sizes), (2, dtype_trial.BATCH, sizes), (1, dtype_trial.CHUNK, sizes)]


def test_real_layers_are_measured_in_a_single_thread_and_the_other_threads_return() -> None:
    threads = torch.get_num_threads()
    assert 0 < answer_seconds(SHAPES[:1], torch.float32) < float("inf")
    assert torch.get_num_threads() == threads


def test_layers_that_the_engine_combines_count_as_one() -> None:
    model = tiny("Llama", 2)
    with torch.device("meta"):
        shapes = linear_shapes(type(model)(model.config))
    assert shapes == linear_shapes(model)
    config = model.config
    assert LinearShape(config.hidden_size, 2 * config.intermediate_size, 2) in shapes
    assert [shape.outputs for shape in shapes if shape.is_head] == [config.vocab_size]
    prepack_linears(model)
    assert linear_shapes(model) == dtype_trial.TYPICAL_SHAPES


def test_without_kernels_for_packed_weights_plain_layers_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> torch.Tensor:
        raise RuntimeError("no kernel")

    linear = torch.nn.Linear(4, 4)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", fail)
    assert dtype_trial._pack(linear) is linear
