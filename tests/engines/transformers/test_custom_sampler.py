"""Tests of custom samplers: their arguments, results and errors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch

from aiochatstream import ChatStream, GenerationParams, TokenSampler
from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.engines.transformers.custom_sampler import sample_function
from aiochatstream.engines.transformers.sampler import Sampler
from tests.engines.transformers.engine_harness import answer, load_engine
from tests.engines.transformers.tiny_models import BYTES, reference, some_ids, tiny
from tests.helpers import PATIENCE, Client, Server, StartServer


class NextIdSampler(TokenSampler):
    """A sampler that returns the id after the newest one, raises for the seed 13, and modifies its logits."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def sample(
        self, logits: torch.Tensor, token_ids: Sequence[Sequence[int]], params: Sequence[GenerationParams]
    ) -> list[int]:
        assert logits.dtype == torch.float32
        assert len(logits) == len(token_ids) == len(params)
        logits.zero_()
        self.rows.append(len(logits))
        if any(row.seed == 13 and len(ids) > 8 for row, ids in zip(params, token_ids, strict=True)):
            raise ZeroDivisionError("seed 13")
        return [(ids[-1] + 1) % logits.shape[-1] for ids in token_ids]


class GreedySampler(TokenSampler):
    def sample(
        self, logits: torch.Tensor, token_ids: Sequence[Sequence[int]], params: Sequence[GenerationParams]
    ) -> torch.Tensor:
        return logits.argmax(dim=-1)


class FixedSampler(TokenSampler):
    """A sampler that returns ``result``."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def sample(self, *arguments: Any) -> Any:
        return self.result


@pytest.mark.parametrize("family", ["Qwen2", "Mamba"])
def test_a_custom_sampler_returns_every_token_regardless_of_the_parameters(family: str) -> None:
    engine = load_engine(tiny(family), slots=3, context_len=256, token_sampler=GreedySampler())
    ids = some_ids(20)
    assert answer(engine, ids, max_new_tokens=10, temperature=2.0, seed=4) == reference(tiny(family), ids, 10)
    engine.close()


@pytest.mark.parametrize("family", ["Qwen2", "Mamba"])
def test_an_error_of_a_custom_sampler_fails_only_its_own_answer(family: str) -> None:
    sampler = NextIdSampler()
    engine = load_engine(tiny(family), slots=3, context_len=256, token_sampler=sampler)
    start = threading.Barrier(3)

    def request(seed: int) -> list[int] | ZeroDivisionError:
        start.wait(PATIENCE)
        try:
            return answer(engine, [seed] * 4, max_new_tokens=10, seed=seed)
        except ZeroDivisionError as error:
            return error

    with ThreadPoolExecutor(3) as threads:
        first, failed, last = threads.map(request, (12, 13, 14))
    assert first == list(range(13, 23))
    assert last == list(range(15, 25))
    assert isinstance(failed, ZeroDivisionError)
    engine.close()


def test_a_custom_sampler_is_called_once_for_all_rows() -> None:
    sampler = NextIdSampler()
    samplers = [Sampler(GenerationParams()) for _ in range(3)]
    logits = torch.randn(3, 40)
    before = logits.clone()
    assert sample_function(sampler)(logits, samplers, [[1], [2, 3], [39]]) == [2, 4, 0]
    assert sampler.rows == [3]
    assert torch.equal(logits, before), "the input was modified"


@pytest.mark.parametrize("result", [[1], [1, 2, 3], [1, 40], [-1, 0], torch.tensor([1, 40])], ids=str)
def test_invalid_token_ids_are_an_error(result: Any) -> None:
    with pytest.raises(ValueError, match=r"^token_sampler: must return 2 ids below 40, not"):
        sample_function(FixedSampler(result))(torch.zeros(2, 40), [Sampler(GenerationParams())] * 2, [[1], [1]])


@pytest.mark.parametrize("result", [None, 5, [0.5, 1], torch.tensor([0.5, 1.0]), [[1], [2]]], ids=str)
def test_results_that_are_not_integers_are_an_error(result: Any) -> None:
    with pytest.raises(TypeError):
        sample_function(FixedSampler(result))(torch.zeros(2, 40), [Sampler(GenerationParams())] * 2, [[1], [1]])


def test_a_custom_sampler_is_not_called_with_nan_logits() -> None:
    sampler = NextIdSampler()
    logits = torch.zeros(2, 40)
    logits[1, 7] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        sample_function(sampler)(logits, [Sampler(GenerationParams())] * 2, [[1], [1]])
    assert sampler.rows == []


def test_an_object_that_is_not_a_token_sampler_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"^token_sampler: must be a TokenSampler, not"):
        TransformersEngine(tiny(), BYTES, token_sampler=NextIdSampler)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^token_sampler: must be a TokenSampler, not"):
        TransformersEngine(tiny(), BYTES, token_sampler=lambda *arguments: [1])  # type: ignore[arg-type]


async def test_chat_stream_uses_a_custom_sampler(
    start: StartServer, client_of: Callable[[Server], Client], model: Any, tokenizer: Any
) -> None:
    tokens = tokenizer(" aiohttp streams", add_special_tokens=False)["input_ids"]

    class TextSampler(TokenSampler):
        def sample(
            self, logits: torch.Tensor, token_ids: Sequence[Sequence[int]], params: Sequence[GenerationParams]
        ) -> list[int]:
            following = dict(pairwise(tokens))
            return [following.get(ids[-1], tokens[0]) for ids in token_ids]

    engine = TransformersEngine(model, tokenizer, token_sampler=TextSampler())
    chat_stream = ChatStream(engine=engine, params=GenerationParams(max_new_tokens=len(tokens)))
    assert (await client_of(await start(chat_stream)).say("hi"))["text"] == " aiohttp streams"
