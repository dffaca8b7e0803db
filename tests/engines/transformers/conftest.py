"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from aiochatstream.engines.transformers.batch import Batch
from tests.engines.transformers.batch_harness import MakeBatch, OneLayerModel, batch_of
from tests.engines.transformers.scripted_answers import HARMONY, ScriptedModel


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in one thread: torch's threads wait in busy loops, which is slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["Qwen2", "Mamba"])
def qwen(request: pytest.FixtureRequest) -> Iterator[ScriptedModel]:
    """A model with Qwen3's format, batched and sequential."""
    model = ScriptedModel(family=request.param)
    yield model
    model.engine.close()


@pytest.fixture(scope="module")
def harmony() -> Iterator[ScriptedModel]:
    model = ScriptedModel(HARMONY)
    yield model
    model.engine.close()


@pytest.fixture
def free_model() -> OneLayerModel:
    """A model whose forward passes never wait."""
    return OneLayerModel()


@pytest.fixture
def manual_model() -> Iterator[OneLayerModel]:
    """A model whose forward passes wait for the test."""
    model = OneLayerModel(waits=True)
    yield model
    model.run_freely()


@pytest.fixture
def make_batch() -> Iterator[MakeBatch]:
    """Function with the parameters of :func:`batch_of`; its batches are closed after the test."""
    batches: list[Batch] = []

    def make(model: OneLayerModel, **options: Any) -> Batch:
        batches.append(batch_of(model, **options))
        return batches[-1]

    yield make
    for batch in batches:
        batch.close()
