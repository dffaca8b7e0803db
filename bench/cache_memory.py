"""Lookups in the prefix cache, and memory that short chats take."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from statistics import median

from runners import engine_runner

from aiochatstream.engines.transformers.block_pool import BlockPool
from aiochatstream.engines.transformers.cpu.native import BLOCK_SIZE
from aiochatstream.engines.transformers.engine import TransformersEngine
from aiochatstream.engines.transformers.prefix_cache import PrefixCache

OWNER = "session:bench"
COMMON_TOKENS, SEQUENCE_TOKENS = 24, 64
"""Equal tokens at the beginning of all sequences, which end within a block, and tokens of a sequence."""
VOCABULARY = 50_000
LOOKUPS = 100
"""Lookups of each kind in a round."""

CHATS, MEMORY_CONTEXTS = 16, 4
"""Number of short chats, and size of the memory in whole contexts."""
CHAT_TOKENS, ANSWER_TOKENS = 30, 32

LOOKUP_KINDS = ("cached prompt", "new prompt")


class CachedSequences:
    """A prefix cache that is full of sequences of one owner, which begin alike."""

    def __init__(self, count: int, rng: random.Random) -> None:
        self._random = rng
        self._common = self._ids(COMMON_TOKENS)
        blocks = -(-SEQUENCE_TOKENS // BLOCK_SIZE)
        pool = BlockPool(count * blocks)
        self._cache = PrefixCache(pool, BLOCK_SIZE, pool.count)
        self._sequences = [self._new_sequence() for _ in range(count)]
        for ids in self._sequences:
            used = self._cache.match(ids, OWNER).blocks
            self._cache.acquire(used)
            self._cache.insert(ids, used, self._cache.reserve(blocks - len(used)), OWNER)
            self._cache.release(used)

    def lookup_us(self) -> list[float]:
        """Return the median microseconds of a lookup, for each of :data:`LOOKUP_KINDS`.

        Raise RuntimeError if it does not find what is cached.
        """
        times = []
        for draw, cached_tokens in ((self._cached_sequence, SEQUENCE_TOKENS), (self._new_sequence, COMMON_TOKENS)):
            seconds = []
            for _ in range(LOOKUPS):
                prompt = draw() + self._ids(8)
                start = time.perf_counter()
                match = self._cache.match(prompt, OWNER)
                seconds.append(time.perf_counter() - start)
                if len(match.blocks) * BLOCK_SIZE + match.partial_tokens < cached_tokens:
                    raise RuntimeError("A lookup in the prefix cache did not find the cached tokens.")
            times.append(median(seconds) * 1e6)
        return times

    def _cached_sequence(self) -> list[int]:
        return self._random.choice(self._sequences)

    def _new_sequence(self) -> list[int]:
        return self._common + self._ids(SEQUENCE_TOKENS - COMMON_TOKENS)

    def _ids(self, length: int) -> list[int]:
        return [self._random.randrange(VOCABULARY) for _ in range(length)]


def measure_lookups(counts: Sequence[int], rounds: int, rng: random.Random) -> list[dict[str, float]]:
    """Return the medians of ``rounds`` for each number of cached sequences, and their ratios to the first number."""
    caches = [CachedSequences(count, rng) for count in counts]
    times = [[cache.lookup_us() for cache in caches] for _ in range(rounds)]
    rows = []
    for at, count in enumerate(counts):
        row: dict[str, float] = {"sequences": count}
        for kind, name in enumerate(LOOKUP_KINDS):
            row[f"{name}, us"] = median(turn[at][kind] for turn in times)
            row[f"{name}, ratio"] = median(turn[at][kind] / turn[0][kind] for turn in times)
        rows.append(row)
    return rows


def measure_chats(
    create_engine: Callable[[int], TransformersEngine], context: int, token_bytes: int, ids: Callable[[int], list[int]]
) -> dict[str, float]:
    """Return the tokens of memory that concurrent short chats take of a small KV cache, by the engine's metrics.

    :param create_engine: returns an engine with a ``kv_cache_bytes``, before its load.
    :param token_bytes: bytes of the keys and values of a token.
    :param ids: returns a number of tokens.
    """
    engine = create_engine(MEMORY_CONTEXTS * context * token_bytes)
    samples: list[dict[str, float]] = []
    engine.on_step = lambda kind, seconds: samples.append(engine.metrics())
    engine.load(CHATS, context)
    try:
        samples.clear()
        engine_runner(engine)([ids(CHAT_TOKENS) for _ in range(CHATS)], ANSWER_TOKENS)
        fullest = max(samples, key=lambda sample: (sample["batch_size"], sample["kv_cache_used_tokens"]))
        used, whole = fullest["kv_cache_used_tokens"], CHATS * context
        return {
            "chats": CHATS,
            "at once": fullest["batch_size"],
            "context, tokens": context,
            "KV cache, tokens": engine.kv_cache_tokens or 0,
            "in use, tokens": used,
            "whole contexts, tokens": whole,
            "in use/whole": used / whole,
        }
    finally:
        engine.close()
