"""Blocks of finished sequences, for later prompts with the same prefix."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from aiochatstream.engines.transformers.block_pool import BlockPool
from aiochatstream.engines.transformers.state_cache import Snapshot, StateCache

IDLE_SECONDS = 1800.0
"""Seconds after its last use when a block is evicted. This also covers expired sessions, closed connections and keys
that are no longer used."""

SHARED = "shared"
"""Owner of the tokens that the server puts before every conversation. Their blocks are evicted last."""

ID_BYTES = 4
"""Bytes of a token id in a key."""


@dataclass(eq=False, slots=True)
class _Siblings:
    """Nodes of one owner that continue the same tokens. None of their keys is a prefix of another one.

    keys: sorted.
    """

    keys: list[bytes] = field(default_factory=list)
    nodes: dict[bytes, CachedBlock] = field(default_factory=dict)

    def neighbours(self, key: bytes) -> list[CachedBlock]:
        """Return the nodes, at most two, before and after ``key`` in their order: the most similar ones."""
        at = bisect_left(self.keys, key)
        return [self.nodes[neighbour] for neighbour in self.keys[max(0, at - 1) : at + 1]]


@dataclass(eq=False, slots=True)
class CachedBlock:
    """A block of a sequence, which continues the sequence of its parent.

    key: ids of its tokens, as bytes that sort like the ids.
    number: number of the block in the pool; -1 for the root.
    parent: None for the root, and for a block that no later prompt may use.
    users: number of running requests with this block.
    queued: True if the block is in the heap of candidates for eviction.
    snapshot: states after its last token, for a model with states.
    """

    owner: str
    key: bytes
    number: int
    parent: CachedBlock | None
    children: dict[str, _Siblings] = field(default_factory=dict)
    users: int = 0
    last_used: float = 0.0
    queued: bool = False
    snapshot: Snapshot | None = None

    @property
    def evictable(self) -> bool:
        return self.parent is not None and not self.users and not self.children


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The longest cached prefix of a prompt: complete blocks, and the first tokens of another one.

    partial: block whose first ``partial_tokens`` tokens continue ``blocks``.
    snapshot: states after these tokens, for a model with states.
    """

    blocks: Sequence[CachedBlock] = ()
    partial: CachedBlock | None = None
    partial_tokens: int = 0
    snapshot: Snapshot | None = None

    @property
    def used(self) -> list[CachedBlock]:
        """All blocks."""
        return [*self.blocks] if self.partial is None else [*self.blocks, self.partial]


class PrefixCache:
    """Tree of cached blocks, and the pool that they come from.

    Sequences that begin alike share their blocks, but only sequences of one owner, and the tokens that the server puts
    before every conversation. A lookup costs the same with 10 and with 10,000 cached sequences. The least recently used
    block that no other block continues is evicted first, and only when blocks are needed, unless it was idle for
    :data:`IDLE_SECONDS`.

    Rows of a model with states continue only where a sequence has ended, because states cannot be shortened.

    :param pool: blocks for rows and for this cache.
    :param max_blocks: maximum number of blocks that only this cache uses; 0 disables it.
    :param states: states of the model; None for a model without.
    :param clock: returns seconds; for tests.
    """

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        max_blocks: int,
        states: StateCache | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool, self.max_blocks = pool, max_blocks
        self.unused = 0
        """Number of cached blocks without a running request."""
        self._block_size, self._block_bytes, self._clock = block_size, block_size * ID_BYTES, clock
        self._states = states or None
        self._root = CachedBlock("", b"", -1, None)
        self._tops: dict[str, set[CachedBlock]] = {}
        """Blocks of each owner whose parents are not the owner's."""
        self._heap: list[tuple[float, int, CachedBlock]] = []
        """Candidates for eviction, each once, with their last use or an earlier one; stale ones are skipped."""
        self._numbers = itertools.count()
        self._snapshots: OrderedDict[CachedBlock, None] = OrderedDict()
        """Blocks with snapshots, least recently used first."""

    def match(self, ids: Sequence[int], owner: str = "", shared_tokens: int = 0) -> PrefixMatch:
        """Return the longest prefix of ``ids`` that ``owner`` may reuse.

        :param shared_tokens: number of tokens at the beginning of ``ids`` that come from the server.
        """
        self.sweep()
        parts = [*self._parts(key_of(ids))]
        blocks = self._match_complete(parts, owner, shared_tokens)
        while True:
            partial, tokens = self._match_partially(blocks, parts, owner, shared_tokens)
            last = partial or (blocks[-1] if blocks else None)
            if self._states is None or last is None:
                return PrefixMatch(blocks, partial, tokens)
            if last.snapshot is not None:
                self._snapshots.move_to_end(last)
                return PrefixMatch(blocks, partial, tokens, last.snapshot)
            blocks.pop()

    def acquire(self, blocks: Sequence[CachedBlock]) -> None:
        """Keep ``blocks`` until :meth:`release`."""
        for block in blocks:
            self.unused -= not block.users
            block.users += 1

    def release(self, blocks: Sequence[CachedBlock]) -> None:
        """End a use of ``blocks``."""
        for block in reversed(blocks):
            block.users -= 1
            if not block.users:
                if block.parent is None:
                    self.pool.release([block.number])
                else:
                    self.unused += 1
                    self._touch(block)
        self._limit()

    def can_reserve(self, count: int, besides: Sequence[CachedBlock] = ()) -> bool:
        """Return True if :meth:`reserve` can allocate ``count`` blocks without evicting ``besides``."""
        return count <= self.pool.free + self.unused - sum(not block.users for block in besides)

    def reserve(self, count: int) -> list[int]:
        """Allocate ``count`` blocks, and evict as many as they need."""
        while self.pool.free < count:
            self._evict()
        return self.pool.allocate(count)

    def insert(
        self,
        ids: Sequence[int],
        used: Sequence[CachedBlock],
        blocks: Sequence[int],
        owner: str = "",
        shared_tokens: int = 0,
        row: int | None = None,
    ) -> None:
        """Insert a sequence, and free those of its ``blocks`` that are empty or already cached.

        :param used: cached blocks at its beginning, in use by the caller.
        :param blocks: numbers of the blocks that follow them.
        :param shared_tokens: as in :meth:`match`.
        :param row: row of the sequence, whose states are saved for a model with states.
        """
        parent = used[-1] if used else self._root
        parts = [*self._parts(key_of(ids))]
        for at, block in enumerate(blocks, len(used)):
            if at < len(parts) and self.max_blocks:
                parent = self._insert(parent, parts[at], block, self._owner(at, owner, shared_tokens))
            else:
                self.pool.release([block])
        if row is not None and len(used) < len(parts) and parent.key == parts[-1]:  # not a longer sequence
            self._save_states(parent, row)
        self._limit()

    def forget(self, owner: str) -> None:
        """Drop all blocks of ``owner``; running requests keep theirs until they end."""
        for top in self._tops.pop(owner, set()):
            self._unlink(top)
            stack = [top]
            while stack:
                block = stack.pop()
                stack += (child for siblings in block.children.values() for child in siblings.nodes.values())
                block.children.clear()
                block.parent = None
                self._drop_snapshot(block)
                if not block.users:
                    self.unused -= 1
                    self.pool.release([block.number])
        if len(self._heap) > 2 * self.pool.count:  # most of the blocks are forgotten
            self._heap = [candidate for candidate in self._heap if self._is_candidate(candidate[2])]
            heapq.heapify(self._heap)

    def sweep(self) -> None:
        """Evict blocks that were not used for ``IDLE_SECONDS``."""
        expiry = self._clock() - IDLE_SECONDS
        while self._heap and self._heap[0][0] < expiry:
            self._evict_first()

    def _owner(self, at: int, owner: str, shared_tokens: int) -> str:
        """Return the owner of the block at an index of a sequence."""
        return SHARED if (at + 1) * self._block_size <= shared_tokens else owner

    def _parts(self, key: bytes) -> Iterator[bytes]:
        """Yield the part of each block."""
        return (key[start : start + self._block_bytes] for start in range(0, len(key), self._block_bytes))

    def _match_complete(self, parts: Sequence[bytes], owner: str, shared_tokens: int) -> list[CachedBlock]:
        """Return the blocks that contain the first of ``parts``, which are complete."""
        blocks: list[CachedBlock] = []
        parent = self._root
        for at, part in enumerate(parts):
            siblings = parent.children.get(self._owner(at, owner, shared_tokens))
            child = None if siblings is None else siblings.nodes.get(part)
            if child is None or len(part) < self._block_bytes:
                break
            blocks.append(child)
            parent = child
        return blocks

    def _match_partially(
        self, blocks: Sequence[CachedBlock], parts: Sequence[bytes], owner: str, shared_tokens: int
    ) -> tuple[CachedBlock | None, int]:
        """Return the block after ``blocks`` with the longest match to its part, and the number of equal tokens."""
        at = len(blocks)
        if at == len(parts):
            return None, 0
        parent, part = blocks[-1] if blocks else self._root, parts[at]
        best: CachedBlock | None = None
        most = 0
        for name, limit in ((owner, self._block_size), (SHARED, shared_tokens - at * self._block_size)):
            siblings = parent.children.get(name)
            for block in [] if siblings is None else siblings.neighbours(part):
                length = min(limit, common_length(block.key, part))
                if self._states is not None and (block.snapshot is None or length * ID_BYTES < len(block.key)):
                    continue
                if length > most:
                    best, most = block, length
        return best, most

    def _insert(self, parent: CachedBlock, key: bytes, number: int, owner: str) -> CachedBlock:
        """Return the block after ``parent`` with the tokens of ``key``: a cached one, or else ``number``."""
        siblings = parent.children.setdefault(owner, _Siblings())
        for neighbour in siblings.neighbours(key):
            if neighbour.key.startswith(key):
                self.pool.release([number])
                self._touch(neighbour)
                return neighbour
            if key.startswith(neighbour.key):  # incomplete, so it has no children
                self._drop(neighbour)
                siblings = parent.children.setdefault(owner, siblings)
        block = CachedBlock(owner, key, number, parent)
        insort(siblings.keys, key)
        siblings.nodes[key] = block
        if parent.owner != owner or parent is self._root:
            self._tops.setdefault(owner, set()).add(block)
        self.unused += 1
        self._touch(block)
        return block

    def _touch(self, block: CachedBlock) -> None:
        """Record a use of ``block``."""
        block.last_used = math.inf if block.owner == SHARED else self._clock()
        self._push(block)

    def _is_candidate(self, block: CachedBlock) -> bool:
        """Return True if ``block`` remains in the heap."""
        block.queued = block.evictable
        return block.queued

    def _push(self, block: CachedBlock) -> None:
        """Add ``block`` to the candidates for eviction, if it is one."""
        if block.evictable and not block.queued:
            block.queued = True
            heapq.heappush(self._heap, (block.last_used, next(self._numbers), block))

    def _limit(self) -> None:
        while self.unused > self.max_blocks:
            self._evict()

    def _evict(self) -> None:
        """Evict the least recently used of the unused blocks, of which there is at least one."""
        while not self._evict_first():
            pass

    def _evict_first(self) -> bool:
        """Remove the first candidate. Return False if it is stale."""
        last_used, _, block = heapq.heappop(self._heap)
        block.queued = False
        if not block.evictable or block.last_used != last_used:
            self._push(block)
            return False
        self._drop(block)
        return True

    def _drop(self, block: CachedBlock) -> None:
        """Remove an unused block without children."""
        self._unlink(block)
        block.parent = None
        self._drop_snapshot(block)
        self.unused -= 1
        self.pool.release([block.number])

    def _save_states(self, block: CachedBlock, row: int) -> None:
        """Save the states of a row whose sequence ends with ``block``; drop the least recently used ones for them."""
        if self._states is None or block.snapshot is not None:
            return
        snapshot = self._states.save(row)
        if snapshot is None and self._snapshots:
            self._drop_snapshot(next(iter(self._snapshots)))
            snapshot = self._states.save(row)
        if snapshot is not None:
            block.snapshot = snapshot
            self._snapshots[block] = None

    def _drop_snapshot(self, block: CachedBlock) -> None:
        if self._states is not None and block.snapshot is not None:
            self._states.free(block.snapshot)
            block.snapshot = None
            del self._snapshots[block]

    def _unlink(self, block: CachedBlock) -> None:
        """Remove ``block`` from its parent's children."""
        parent = block.parent
        if parent is None:
            return
        siblings = parent.children[block.owner]
        del siblings.nodes[block.key]
        del siblings.keys[bisect_left(siblings.keys, block.key)]
        if not siblings.keys:
            del parent.children[block.owner]
        tops = self._tops.get(block.owner)
        if tops is not None:
            tops.discard(block)
            if not tops:
                del self._tops[block.owner]
        self._push(parent)


def key_of(ids: Sequence[int]) -> bytes:
    """Return ``ids`` as bytes that sort like them."""
    return np.asarray(ids, ">u4").tobytes()


def common_length(first: bytes, second: bytes) -> int:
    """Return the length of the common prefix of two keys, in ids."""
    length = min(len(first), len(second)) // ID_BYTES
    left, right = (np.frombuffer(key, np.uint32, length) for key in (first, second))
    differing = np.flatnonzero(left != right)
    return int(differing[0]) if len(differing) else length
