"""Functions that load engines and collect their answers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiochatstream import Delta, Engine, GenerationParams, Prompt
from aiochatstream.engines.transformers import TransformersEngine
from tests.engines.transformers.tiny_models import BYTES
from tests.helpers import PATIENCE


def load_engine(
    model: Any, tokenizer: Any = BYTES, *, slots: int = 2, context_len: int | None = 2048, **options: Any
) -> TransformersEngine:
    engine = TransformersEngine(model, tokenizer, **options)
    engine.load(slots=slots, context_len=context_len)
    return engine


def deltas_of(engine: Engine, ids: list[int], **params: Any) -> list[Delta]:
    """Return all deltas of an answer, which is greedy by default."""
    options = {"temperature": 0, "max_new_tokens": 24} | params
    return list(engine.generate(Prompt([], ids), GenerationParams(**options)))


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def answer(engine: Engine, ids: list[int], **params: Any) -> list[int]:
    """Return the tokens of an answer, which is greedy by default."""
    return tokens_of(deltas_of(engine, ids, **params))


def concurrent_deltas(engine: Engine, requests: list[tuple[list[int], dict[str, Any]]]) -> list[list[Delta]]:
    """Return the deltas of concurrent answers.

    :param requests: token ids and parameters of each.
    """
    start = threading.Barrier(len(requests))

    def request(ids: list[int], params: dict[str, Any]) -> list[Delta]:
        start.wait(PATIENCE)
        return deltas_of(engine, ids, **params)

    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(request, *zip(*requests, strict=True)))


def concurrent_answers(engine: Engine, prompts: list[list[int]], **params: Any) -> list[list[int]]:
    """Return the tokens of concurrent answers."""
    return [tokens_of(deltas) for deltas in concurrent_deltas(engine, [(ids, params) for ids in prompts])]
