"""Keys and values of finished sequences, for later prompts with the same prefix."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

MAX_PREFIXES = 4096
"""Maximum number of cached prefixes, however short."""

IDLE_SECONDS = 1800.0
"""Seconds after its last use when a prefix is dropped. This also covers expired sessions, closed connections and keys
that are no longer used."""

SHARED = "shared"
"""Owner of the shared prefix: the tokens that the server puts before every conversation."""

Parts = Sequence[torch.Tensor]
"""Keys and values of one row, layer by layer, each [heads, tokens, head size]."""


@dataclass(eq=False, slots=True)
class CachedPrefix:
    """A sequence of tokens.

    key: its ids as bytes that sort like the ids.
    slots: index of each token in the cache's memory.
    borrowed_slots: number of slots at the beginning that belong to the shared prefix.
    last_used: time of the last use.
    """

    owner: str
    key: bytes
    slots: np.ndarray
    borrowed_slots: int
    last_used: float


class PrefixCache:
    """Prefixes of at most ``max_bytes`` in total, separate for each owner. The least recently used is evicted first.

    All tokens are in one tensor per layer, so that neither memory maps nor fragmentation grow with the number of
    prefixes. The prefixes of an owner are sorted, and none is a prefix of another: the longest match of a prompt is
    adjacent to the prompt's position in this order.

    :param like: keys and values of each layer, [1, heads, any length, head size], for shapes, dtypes and device.
    :param clock: returns seconds; for tests.
    """

    def __init__(
        self,
        like: Sequence[tuple[torch.Tensor, ...]],
        max_bytes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._like = [part[0, :, 0] for layer in like for part in layer]
        self._token_bytes = sum(part.nbytes for part in self._like)
        self._clock = clock
        self.clear(max_bytes // max(self._token_bytes, 1))

    def __len__(self) -> int:
        """Return the number of prefixes, without the shared one."""
        return len(self._prefixes)

    @property
    def size(self) -> int:
        """Size of the cached tokens in bytes."""
        return (self.capacity - self._free) * self._token_bytes

    @property
    def reserved(self) -> bool:
        """True if the memory is allocated."""
        return bool(self._memory)

    def clear(self, capacity: int) -> None:
        """Drop all prefixes, including the shared one, and free the memory.

        :param capacity: new maximum number of tokens.
        """
        self.capacity = self._free = capacity
        self._memory: list[torch.Tensor] = []
        self._stack = np.empty(0, np.int64)  # its first self._free elements are the free slots
        self._prefixes: OrderedDict[CachedPrefix, None] = OrderedDict()  # least recently used first
        self._by_owner: dict[str, list[CachedPrefix]] = {}
        self._shared: CachedPrefix | None = None

    def match(self, ids: Sequence[int], owner: str = "", shared_tokens: int = 0) -> tuple[CachedPrefix | None, int]:
        """Return the prefix, of ``owner`` or shared, with the longest match to ``ids``, and the number of equal tokens.

        :param shared_tokens: number of tokens at the beginning of ``ids`` for which the shared prefix may be used.
        """
        self.sweep()
        key = key_of(ids)
        matches = [(prefix, common_length(prefix.key, key)) for prefix in self._neighbours(owner, key)]
        if self._shared is not None:
            matches.insert(0, (self._shared, min(shared_tokens, common_length(self._shared.key, key))))
        best, length = max(matches, key=lambda match: match[1], default=(None, 0))
        if best is None or not length:
            return None, 0
        self._touch(best)
        return best, length

    def load(self, prefix: CachedPrefix, length: int, row: Parts) -> None:
        """Copy the first ``length`` tokens of ``prefix`` to a row of the KV cache."""
        slots = torch.from_numpy(prefix.slots[:length]).to(self._like[0].device)
        for memory, part in zip(self._memory, row, strict=True):
            part[:, :length] = memory.index_select(0, slots).transpose(0, 1)

    def store(self, ids: Sequence[int], row: Parts, owner: str = "", shared_tokens: int = 0) -> None:
        """Store a sequence, unless it does not fit or is a prefix of another sequence of ``owner``.

        :param row: keys and values of at least these tokens. Copied.
        :param owner: SHARED drops all other prefixes first.
        :param shared_tokens: as in :meth:`match`; tokens of the shared prefix are not copied.
        """
        if owner == SHARED:
            self.clear(self.capacity)
        key = key_of(ids)
        neighbours = self._neighbours(owner, key)
        for neighbour in neighbours:
            if neighbour.key.startswith(key):
                self._touch(neighbour)
                return
        continued = next((neighbour for neighbour in neighbours if key.startswith(neighbour.key)), None)
        shared = self._shared
        borrowed = 0 if shared is None else min(shared_tokens, common_length(shared.key, key))
        if len(ids) - borrowed > self.capacity - (0 if shared is None else len(shared.slots)):
            return
        self._reserve_memory()
        slots = np.empty(0, np.int64) if shared is None else shared.slots[:borrowed]
        if continued is not None:  # only the additional tokens are copied
            slots, borrowed = continued.slots, continued.borrowed_slots
            self._remove(continued)
        try:
            while len(self._prefixes) >= MAX_PREFIXES or self._free < len(ids) - len(slots):
                self._drop(next(iter(self._prefixes)))
            start = len(slots)
            slots = np.concatenate((slots, self._allocate(len(ids) - start)))
            places = torch.from_numpy(slots[start:]).to(self._like[0].device)
            for memory, part in zip(self._memory, row, strict=True):
                memory.index_copy_(0, places, part[:, start : len(ids)].transpose(0, 1))
        except BaseException:
            self._release(slots[borrowed:])
            raise
        self._insert(CachedPrefix(owner, key, slots, borrowed, self._clock()))

    def forget(self, owner: str) -> None:
        """Drop all prefixes of ``owner``."""
        for prefix in list(self._by_owner.get(owner, ())):
            self._drop(prefix)

    def sweep(self) -> None:
        """Drop prefixes that were not used for ``IDLE_SECONDS``."""
        expiry = self._clock() - IDLE_SECONDS
        while self._prefixes and (oldest := next(iter(self._prefixes))).last_used < expiry:
            self._drop(oldest)

    def _neighbours(self, owner: str, key: bytes) -> list[CachedPrefix]:
        """Return the prefixes of ``owner``, at most two, before and after ``key`` in their order."""
        prefixes = self._by_owner.get(owner, [])
        at = bisect_left(prefixes, key, key=lambda prefix: prefix.key)
        return prefixes[max(0, at - 1) : at + 1]

    def _touch(self, prefix: CachedPrefix) -> None:
        if prefix is not self._shared:
            prefix.last_used = self._clock()
            self._prefixes.move_to_end(prefix)

    def _insert(self, prefix: CachedPrefix) -> None:
        if prefix.owner == SHARED:
            self._shared = prefix
            return
        self._prefixes[prefix] = None
        prefixes = self._by_owner.setdefault(prefix.owner, [])
        prefixes.insert(bisect_left(prefixes, prefix.key, key=lambda other: other.key), prefix)

    def _remove(self, prefix: CachedPrefix) -> None:
        """Remove ``prefix`` from the index; its slots stay allocated."""
        del self._prefixes[prefix]
        prefixes = self._by_owner[prefix.owner]
        del prefixes[bisect_left(prefixes, prefix.key, key=lambda other: other.key)]
        if not prefixes:
            del self._by_owner[prefix.owner]

    def _drop(self, prefix: CachedPrefix) -> None:
        self._remove(prefix)
        self._release(prefix.slots[prefix.borrowed_slots :])

    def _reserve_memory(self) -> None:
        """Allocate the tensors of all tokens at the first use. In host memory, pages are committed when written."""
        if not self._memory:
            self._memory = [part.new_empty(self.capacity, *part.shape) for part in self._like]
            self._stack = np.arange(self.capacity)[::-1].copy()

    def _allocate(self, count: int) -> np.ndarray:
        self._free -= count
        return self._stack[self._free : self._free + count][::-1].copy()

    def _release(self, slots: np.ndarray) -> None:
        self._stack[self._free : self._free + len(slots)] = slots[::-1]
        self._free += len(slots)


def key_of(ids: Sequence[int]) -> bytes:
    """Return ``ids`` as bytes that sort like them."""
    return np.asarray(ids, ">u4").tobytes()


def common_length(first: bytes, second: bytes) -> int:
    """Return the length of the common prefix of two keys, in ids."""
    length = min(len(first), len(second)) // 4
    left, right = (np.frombuffer(key, np.uint32, length) for key in (first, second))
    differing = np.flatnonzero(left != right)
    return int(differing[0]) if len(differing) else length
