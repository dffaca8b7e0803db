"""A sampler of one's own: what it is given, what it may return, and what happens when it raises."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch

from aiochatstream import ChatStream, GenerationParams, Prompt, TokenSampler
from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.engines.transformers.custom_sampler import drawing
from aiochatstream.engines.transformers.sampling import Sampler
from tests.engines.transformers.models import BYTES, reference, some_ids, tiny
from tests.helpers import PATIENCE


class Follows(TokenSampler):
    """Takes the token after the newest one; raises where an answer's seed says so. Spoils the logits it is given."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def sample(
        self, logits: torch.Tensor, token_ids: Sequence[Sequence[int]], params: Sequence[GenerationParams]
    ) -> list[int]:
        assert logits.dtype == torch.float32
        assert len(logits) == len(token_ids) == len(params)
        logits.zero_()
        self.rows.append(len(logits))
        if any(one.seed == 13 and len(ids) > 8 for one, ids in zip(params, token_ids, strict=True)):
            raise ZeroDivisionError("this sampler does not like 13")
        return [(ids[-1] + 1) % logits.shape[-1] for ids in token_ids]


class Likeliest(TokenSampler):
    def sample(
        self, logits: torch.Tensor, token_ids: Sequence[Sequence[int]], params: Sequence[GenerationParams]
    ) -> torch.Tensor:
        return logits.argmax(dim=-1)


class Returns(TokenSampler):
    def __init__(self, found: Any) -> None:
        self.found = found

    def sample(self, *given: Any) -> Any:
        return self.found


def loaded(family: str, sampler: TokenSampler, slots: int = 3) -> TransformersEngine:
    engine = TransformersEngine(tiny(family), BYTES, token_sampler=sampler)
    engine.load(slots=slots, context_len=256)
    return engine


def answer(engine: TransformersEngine, ids: list[int], **params: Any) -> list[int]:
    asked = GenerationParams(**{"max_new_tokens": 10} | params)
    return [token for delta in engine.generate(Prompt([], ids), asked) for token in delta.token_ids]


@pytest.mark.parametrize("family", ["Qwen2", "Mamba"])
def test_it_chooses_every_token_whatever_the_parameters_say(family: str) -> None:
    engine = loaded(family, Likeliest())
    ids = some_ids(20)
    assert answer(engine, ids, temperature=2.0, seed=4) == reference(tiny(family), ids, 10)
    engine.close()


@pytest.mark.parametrize("family", ["Qwen2", "Mamba"])
def test_where_it_raises_only_that_answer_fails(family: str) -> None:
    sampler = Follows()
    engine = loaded(family, sampler)
    begin = threading.Barrier(3)

    def ask(seed: int) -> Any:
        begin.wait(PATIENCE)
        try:
            return answer(engine, [seed] * 4, seed=seed)
        except ZeroDivisionError as error:
            return error

    with ThreadPoolExecutor(3) as threads:
        first, failed, last = threads.map(ask, (12, 13, 14))
    assert first == list(range(13, 23))
    assert last == list(range(15, 25))
    assert isinstance(failed, ZeroDivisionError)
    engine.close()


def test_the_rows_of_a_step_come_in_one_call() -> None:
    sampler = Follows()
    samplers = [Sampler(GenerationParams()) for _ in range(3)]
    logits = torch.randn(3, 40)
    before = logits.clone()
    assert drawing(sampler)(logits, samplers, [[1], [2, 3], [39]]) == [2, 4, 0]
    assert sampler.rows == [3]
    assert torch.equal(logits, before), "it gets a copy"


@pytest.mark.parametrize("found", [[1], [1, 2, 3], [1, 40], [-1, 0], torch.tensor([1, 40])], ids=str)
def test_what_are_no_token_ids_is_an_error(found: Any) -> None:
    with pytest.raises(ValueError, match=r"^token_sampler: must return 2 ids below 40, not"):
        drawing(Returns(found))(torch.zeros(2, 40), [Sampler(GenerationParams())] * 2, [[1], [1]])


@pytest.mark.parametrize("found", [None, 5, [0.5, 1], torch.tensor([0.5, 1.0]), [[1], [2]]], ids=str)
def test_what_are_no_whole_numbers_is_an_error(found: Any) -> None:
    with pytest.raises(TypeError):
        drawing(Returns(found))(torch.zeros(2, 40), [Sampler(GenerationParams())] * 2, [[1], [1]])


def test_logits_that_are_no_numbers_never_reach_it() -> None:
    sampler = Follows()
    logits = torch.zeros(2, 40)
    logits[1, 7] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        drawing(sampler)(logits, [Sampler(GenerationParams())] * 2, [[1], [1]])
    assert sampler.rows == []


def test_anything_else_than_a_token_sampler_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"^token_sampler: must be a TokenSampler, not"):
        TransformersEngine(tiny(), BYTES, token_sampler=Follows)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^token_sampler: must be a TokenSampler, not"):
        TransformersEngine(tiny(), BYTES, token_sampler=lambda *given: [1])  # type: ignore[arg-type]


async def test_chat_stream_answers_with_it(start: Any, client_of: Any, model: Any, tokenizer: Any) -> None:
    said = tokenizer(" aiohttp streams", add_special_tokens=False)["input_ids"]

    class Says(TokenSampler):
        def sample(
            self, logits: torch.Tensor, token_ids: Sequence[Sequence[int]], params: Sequence[GenerationParams]
        ) -> list[int]:
            nexts = dict(pairwise(said))
            return [nexts.get(ids[-1], said[0]) for ids in token_ids]

    engine = TransformersEngine(model, tokenizer, token_sampler=Says())
    chat_stream = ChatStream(engine=engine, params=GenerationParams(max_new_tokens=len(said)))
    assert (await client_of(await start(chat_stream)).say("hi"))["text"] == " aiohttp streams"
