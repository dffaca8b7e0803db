"""A prefix cache whose blocks contain tokens in place of keys and values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hypothesis import strategies as st

from aiochatstream.engines.transformers.block_pool import BlockPool
from aiochatstream.engines.transformers.chunk import Chunk
from aiochatstream.engines.transformers.prefix_cache import (
    CachedBlock,
    PrefixCache,
    PrefixMatch,
    common_length,
    key_of,
)
from aiochatstream.engines.transformers.state_cache import StateCache

BLOCK_SIZE = 2
STATE = "recurrent", 0, 0
PREFIX = [1, 1, 1]
"""Tokens that the server puts before conversations. They end inside a block."""

owners = st.sampled_from(["anna", "bob"])
sequences = st.lists(st.integers(1, 3), min_size=1, max_size=9)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Memory:
    """Tokens in the blocks of a pool, in place of keys and values, and the prefix cache of the pool.

    :param snapshots: number of snapshots of a model with states; None for a model without. A state is the number of
        its tokens and their sum.
    """

    def __init__(self, blocks: int, max_blocks: int | None = None, snapshots: int | None = None) -> None:
        self.clock = Clock()
        self.pool = BlockPool(blocks)
        like = {} if snapshots is None else {STATE: torch.zeros(1, 2, dtype=torch.int64)}
        self.states = StateCache(like, rows=1, snapshots=snapshots or 0)
        self.cache = PrefixCache(
            self.pool, BLOCK_SIZE, blocks if max_blocks is None else max_blocks, self.states, clock=self.clock
        )
        self.tokens: dict[int, list[int]] = {}

    def store(self, ids: list[int], owner: str = "", shared_tokens: int = 0) -> None:
        """Compute a sequence without its cached prefix, and cache it, after all earlier uses."""
        self.clock.now += 1e-3
        blocks = self.cache.reserve(blocks_for(len(ids)))
        self.write(blocks, 0, ids)
        self.insert(ids, [], blocks, owner, shared_tokens)

    def insert(
        self, ids: list[int], used: list[CachedBlock], blocks: list[int], owner: str, shared_tokens: int
    ) -> None:
        """Cache a sequence and its states."""
        with self.states.advance([Chunk(0, 0, ids)] if ids else []):
            if self.states:
                self.states.tensors[STATE][0] = torch.tensor([len(ids), sum(ids)])
        self.cache.insert(ids, used, blocks, owner, shared_tokens, 0)

    def write(self, blocks: list[int], first: int, ids: list[int]) -> None:
        """Write a sequence to ``blocks``, the first of which is block ``first`` of the sequence."""
        for at, block in enumerate(blocks, first):
            self.tokens[block] = ids[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE]

    def match(self, ids: list[int], owner: str = "", shared_tokens: int = 0) -> PrefixMatch:
        """Return the match, whose blocks contain the tokens of ``ids``."""
        match = self.cache.match(ids, owner, shared_tokens)
        for at, block in enumerate(match.used):
            count = BLOCK_SIZE if block is not match.partial else match.partial_tokens
            assert self.tokens[block.number][:count] == ids[at * BLOCK_SIZE :][:count]
        if self.states:
            tokens = length_of(match)
            assert (match.snapshot is not None) == (tokens > 0)
            if match.snapshot is not None:
                assert match.snapshot.tokens == tokens
                assert self.states.tensors[STATE][match.snapshot.slot].tolist() == [tokens, sum(ids[:tokens])]
        return match

    def match_length(self, ids: list[int], owner: str = "", shared_tokens: int = 0) -> int:
        return length_of(self.match(ids, owner, shared_tokens))

    def use(self, ids: list[int], owner: str = "", shared_tokens: int = 0) -> None:
        """Use the cached prefix of ``ids``, after all earlier uses."""
        self.clock.now += 1e-3
        match = self.match(ids, owner, shared_tokens)
        self.cache.acquire(match.used)
        self.cache.release(match.used)


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE)


def length_of(match: PrefixMatch) -> int:
    return len(match.blocks) * BLOCK_SIZE + match.partial_tokens


def common(first: list[int], second: list[int]) -> int:
    return common_length(key_of(first), key_of(second))


def paths(cache: PrefixCache) -> Iterator[list[CachedBlock]]:
    """Yield each cached block with those before it."""
    stack: list[list[CachedBlock]] = [[cache._root]]
    while stack:
        *before, block = stack.pop()
        for siblings in block.children.values():
            assert siblings.keys == sorted(siblings.nodes)
            for child in siblings.nodes.values():
                stack.append([*before, block, child])
        if block is not cache._root:
            yield [*before[1:], block]
