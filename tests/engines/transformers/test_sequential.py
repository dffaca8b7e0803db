"""Tests of sequential decoding."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from aiochatstream import GenerationParams
from aiochatstream.engines.transformers import sequential
from aiochatstream.engines.transformers.sequential import PREFILL_TOKENS, SequentialDecoder
from tests.engines.transformers.tiny_models import SEQUENTIAL, reference, some_ids, tiny
from tests.helpers import PATIENCE


@pytest.fixture
def kinds() -> list[str]:
    """Kinds of the forward passes."""
    return []


@pytest.fixture
def model() -> Any:
    return tiny()


@pytest.fixture
def decoder(model: Any, kinds: list[str]) -> SequentialDecoder:
    return SequentialDecoder(model, lambda kind, seconds: kinds.append(kind))


def params(**options: Any) -> GenerationParams:
    return GenerationParams(**{"temperature": 0.0, "max_new_tokens": 6} | options)


def tokens(decoder: SequentialDecoder, ids: list[int], **options: Any) -> list[int]:
    return [token for token in decoder.submit(ids, params(**options)).steps() if token is not None]


@pytest.mark.parametrize("length", [1, PREFILL_TOKENS + 9])
@pytest.mark.parametrize("family", [*SEQUENTIAL, "Qwen2", "Gemma 3"])
def test_greedy_answers_are_those_of_generate(family: str, length: int) -> None:
    model, ids = tiny(family), some_ids(length)
    expected = reference(copy.deepcopy(model), ids, 6)
    assert tokens(SequentialDecoder(model, lambda kind, seconds: None), ids) == expected


@pytest.mark.parametrize(
    ("length", "chunks"), [(1, 1), (PREFILL_TOKENS, 1), (PREFILL_TOKENS + 2, 2), (2 * PREFILL_TOKENS + 5, 3)]
)
def test_each_chunk_of_a_prompt_is_a_step(
    decoder: SequentialDecoder, kinds: list[str], length: int, chunks: int
) -> None:
    answer = decoder.submit(some_ids(length), params(max_new_tokens=2))
    steps = list(answer.steps())
    assert steps[:chunks] == [None] * chunks
    assert len(steps) == chunks + 2
    assert answer.cached_tokens == 0
    assert kinds == [*["prefill" if length > 1 else "decode"] * chunks, "decode"]


def test_closing_the_steps_prevents_further_forward_passes(decoder: SequentialDecoder, kinds: list[str]) -> None:
    steps = decoder.submit(some_ids(3 * PREFILL_TOKENS), params()).steps()
    assert next(steps) is None
    steps.close()
    assert kinds == ["prefill"]
    assert len(tokens(decoder, some_ids(4))) == 6


def test_a_token_is_returned_before_the_next_forward_pass(decoder: SequentialDecoder, kinds: list[str]) -> None:
    steps = decoder.submit(some_ids(4), params(max_new_tokens=3)).steps()
    assert next(steps) is None
    passes = []
    for token in steps:
        assert isinstance(token, int)
        passes.append(len(kinds))
    assert passes == [1, 2, 3]


def test_concurrent_answers_are_independent_and_forward_passes_never_overlap(
    model: Any, decoder: SequentialDecoder
) -> None:
    prompts = [some_ids(9), some_ids(30, 1)]
    expected = [tokens(decoder, ids) for ids in prompts]
    running, max_running = 0, 0
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal running, max_running
        running += 1
        max_running = max(max_running, running)
        try:
            return forward(*args, **kwargs)
        finally:
            running -= 1

    model.forward = counted
    barrier = threading.Barrier(2)

    def read_in_step(ids: list[int]) -> list[int]:
        answer = []
        for token in decoder.submit(ids, params()).steps():
            barrier.wait(PATIENCE)
            answer += [] if token is None else [token]
        return answer

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(read_in_step, prompts)) == expected
    assert max_running == 1


def test_a_failed_answer_does_not_affect_later_ones(decoder: SequentialDecoder) -> None:
    expected = tokens(decoder, some_ids(9))
    with pytest.raises(IndexError):
        tokens(decoder, [5, 10_000])
    assert tokens(decoder, some_ids(9)) == expected


def test_a_model_without_a_known_cache_is_an_error() -> None:
    model = tiny()
    model.forward = lambda input_ids: None
    with pytest.raises(ValueError, match=r"^Qwen2ForCausalLM cannot be served: it has no known kind of cache"):
        SequentialDecoder(model, lambda kind, seconds: None)


@pytest.mark.parametrize("usable", [True, False])
def test_an_error_stops_the_decoder_only_if_the_device_is_lost(
    model: Any, decoder: SequentialDecoder, monkeypatch: pytest.MonkeyPatch, usable: bool
) -> None:
    def fail(module: torch.nn.Module, inputs: Any) -> None:
        raise torch.AcceleratorError("CUDA error")

    monkeypatch.setattr(sequential, "is_usable", lambda device: usable)
    handle = model.get_output_embeddings().register_forward_pre_hook(fail)
    with pytest.raises(torch.AcceleratorError):
        tokens(decoder, some_ids(3))
    assert decoder.stopped is not usable
    handle.remove()
    assert tokens(decoder, some_ids(3)) == reference(model, some_ids(3), 6)
