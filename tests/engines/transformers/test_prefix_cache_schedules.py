"""Tests of the prefix cache for requests that come and go in any order, by a state machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiochatstream.engines.transformers.prefix_cache import ID_BYTES, IDLE_SECONDS, SHARED, CachedBlock, PrefixMatch
from tests.engines.transformers.prefix_cache_harness import (
    BLOCK_SIZE,
    PREFIX,
    Memory,
    blocks_for,
    common,
    length_of,
    owners,
    paths,
    sequences,
)


@dataclass(eq=False)
class Running:
    """A request that has its blocks."""

    ids: list[int]
    owner: str
    used: list[CachedBlock]
    blocks: list[int]
    cacheable: bool = True


class PrefixCacheMachine(RuleBasedStateMachine):
    """Requests come and go in any order. The model is the list of all sequences that were cached."""

    @initialize(blocks=st.integers(3, 12), max_blocks=st.integers(0, 12), snapshots=st.none() | st.integers(0, 3))
    def start(self, blocks: int, max_blocks: int, snapshots: int | None) -> None:
        self.memory, self.snapshots = Memory(blocks, max_blocks, snapshots), snapshots
        self.cache, self.pool = self.memory.cache, self.memory.pool
        self.running: list[Running] = []
        self.stored: dict[str, list[list[int]]] = {"anna": [], "bob": [], SHARED: []}

    def shared_tokens(self, ids: list[int], owner: str) -> int:
        return 0 if owner == SHARED else common(PREFIX, ids)

    @rule(
        ids=sequences | st.just(PREFIX), owner=owners | st.just(SHARED), answer=st.lists(st.integers(1, 3), max_size=4)
    )
    def admit(self, ids: list[int], owner: str, answer: list[int]) -> None:
        ids = PREFIX if owner == SHARED else ids
        match = self.memory.match(ids[:-1], owner, self.shared_tokens(ids, owner))
        self.assert_longest(match, ids[:-1], owner)
        self.cache.acquire(match.used)
        count = blocks_for(len(ids) + len(answer)) - len(match.blocks)
        if self.cache.can_reserve(count):
            blocks = self.cache.reserve(count)
            assert len(set(blocks)) == count
            self.memory.write(blocks, len(match.blocks), ids + answer)
            self.running.append(Running(ids + answer, owner, [*match.blocks], blocks))
            self.cache.release([] if match.partial is None else [match.partial])
        else:
            self.cache.release(match.used)

    def assert_longest(self, match: PrefixMatch, ids: list[int], owner: str) -> None:
        shared = self.shared_tokens(ids, owner)
        in_tree = 0
        for path in paths(self.cache):
            length = 0
            for block in path:
                tokens = self.memory.tokens[block.number][: len(block.key) // ID_BYTES]
                limit = shared - length if block.owner == SHARED != owner else BLOCK_SIZE
                same = min(common(tokens, ids[length : length + BLOCK_SIZE]), max(limit, 0))
                if block.owner not in (owner, SHARED):
                    break
                length += same
                if self.snapshots is None or (block.snapshot is not None and same == len(tokens)):
                    in_tree = max(in_tree, length)
                if same < BLOCK_SIZE:
                    break
        assert length_of(match) == in_tree
        own = max((common(stored, ids) for stored in self.stored[owner]), default=0)
        others = (common(stored, ids) for each in self.stored.values() for stored in each)
        assert in_tree <= max(own, min(common(PREFIX, ids), max(others, default=0)))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), cached=st.booleans(), computed=st.integers(0, 12))
    def retire(self, data: st.DataObject, cached: bool, computed: int) -> None:
        request = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if cached and request.cacheable:
            ids = request.ids[: max(computed, len(request.used) * BLOCK_SIZE)]
            shared_tokens = self.shared_tokens(request.ids, request.owner)
            self.memory.insert(ids, request.used, request.blocks, request.owner, shared_tokens)
            self.stored[request.owner].append(ids)
        else:
            self.pool.release(request.blocks)
        self.cache.release(request.used)

    @rule(owner=owners)
    def forget(self, owner: str) -> None:
        self.cache.forget(owner)
        prefixes = [ids[: common(PREFIX, ids)] for ids in self.stored[owner]]
        self.stored[SHARED] += prefixes  # stored for all
        self.stored[owner].clear()
        for request in self.running:
            request.cacheable = request.cacheable and request.owner != owner
        assert not any(path[-1].owner == owner for path in paths(self.cache))

    @rule(seconds=st.sampled_from([0.0, 1.0, IDLE_SECONDS / 2, IDLE_SECONDS * 2]))
    def wait(self, seconds: float) -> None:
        self.memory.clock.now += seconds

    @rule()
    def sweep(self) -> None:
        self.cache.sweep()
        expiry = self.memory.clock.now - IDLE_SECONDS
        leaves = [path[-1] for path in paths(self.cache) if path[-1].evictable]
        assert all(block.last_used >= expiry for block in leaves)

    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        available = self.pool.free + self.cache.unused
        assert not self.cache.can_reserve(available + 1)
        count = data.draw(st.integers(0, available))
        assert self.cache.can_reserve(count)
        blocks = self.cache.reserve(count)
        assert len(set(blocks)) == count
        self.pool.release(blocks)

    @precondition(lambda self: self.cache.unused)
    @rule()
    def evict(self) -> None:
        """Evict a block: the one that no other continues and that was not used for the longest time."""
        leaves = {path[-1] for path in paths(self.cache) if path[-1].evictable}
        self.pool.release(self.cache.reserve(self.pool.free + 1))
        (evicted,) = leaves - {path[-1] for path in paths(self.cache)}
        assert evicted.last_used == min(block.last_used for block in leaves)

    @invariant()
    def check(self) -> None:
        if not hasattr(self, "memory"):
            return
        nodes = [path[-1] for path in paths(self.cache)]
        users = Counter(block for request in self.running for block in request.used)
        held = {block.number for block in users if block not in nodes}  # forgotten
        numbers = [*(block.number for block in nodes), *held, *(at for each in self.running for at in each.blocks)]
        assert len(numbers) == len(set(numbers)), "a block is used twice"
        assert len(numbers) + self.pool.free == self.pool.count, "a block is lost"
        assert not self.pool._is_free[numbers].any()
        assert all(block.users == users[block] for block in {*nodes, *users})
        assert self.cache.unused == sum(not block.users for block in nodes) <= self.cache.max_blocks
        snapshots = [block.snapshot.slot for block in nodes if block.snapshot is not None]
        free = self.memory.states._free
        assert sorted([*snapshots, *free]) == [*range(1, 1 + (self.snapshots or 0))], "a snapshot is lost or used twice"
        for block in [self.cache._root, *nodes]:
            for siblings in block.children.values():
                for first, second in zip(siblings.keys, siblings.keys[1:], strict=False):
                    assert not second.startswith(first), "a key is the prefix of another"

    def teardown(self) -> None:
        if hasattr(self, "memory"):
            for request in self.running:
                self.pool.release(request.blocks)
                self.cache.release(request.used)
            assert self.pool.free + self.cache.unused == self.pool.count
            assert sorted(self.cache.reserve(self.pool.count)) == [*range(self.pool.count)]


PrefixCacheMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestPrefixCacheMachine = PrefixCacheMachine.TestCase
