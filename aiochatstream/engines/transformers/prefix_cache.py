"""Keys and values of finished sequences, for later prompts that begin with the same tokens."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

MAX_PREFIXES = 4096
"""Prefixes that are kept at the same time, however short they are."""

IDLE_SECONDS = 1800.0
"""Time after the last use at which a prefix is dropped. A session that expires, a closed connection and a key that
nobody uses any more leave nothing longer than that."""

HEAD = "head"
"""Owner of the tokens that the server itself puts before every conversation."""

Parts = Sequence[torch.Tensor]
"""Keys and values of one row, layer by layer, each [heads, tokens, head size]."""


@dataclass(eq=False, slots=True)
class CachedPrefix:
    """One sequence of tokens.

    key: its ids as bytes, in an order that compares like the ids. slots: the place of each token in the pool's memory.
    borrowed: the number of slots at the beginning that belong to the head. used: the time of the last use.
    """

    owner: str
    key: bytes
    slots: np.ndarray
    borrowed: int
    used: float


class PrefixPool:
    """Prefixes of at most ``max_bytes`` in all, apart by owner; the least recently used is dropped first.

    All tokens share one tensor for each layer, so that neither memory maps nor gaps grow with the number of prefixes.
    The prefixes of an owner are sorted, and none begins another: the longest match of a prompt is next to the place
    where the prompt would be sorted in.

    :param like: keys and values of each layer, [1, heads, any, head size], for shapes, dtypes and device.
    :param clock: returns seconds; for tests.
    """

    def __init__(
        self,
        like: Sequence[tuple[torch.Tensor, torch.Tensor]],
        max_bytes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._like = [one[0, :, 0] for layer in like for one in layer]
        self._token_bytes = sum(one.nbytes for one in self._like)
        self._clock = clock
        self.clear(max_bytes // self._token_bytes)

    def __len__(self) -> int:
        """The number of prefixes, without the head."""
        return len(self._prefixes)

    @property
    def size(self) -> int:
        """Bytes in use."""
        return (self.capacity - self._free) * self._token_bytes

    @property
    def reserved(self) -> bool:
        """True if memory is allocated."""
        return bool(self._memory)

    def clear(self, capacity: int) -> None:
        """Drop everything, the head too, and give the memory back.

        :param capacity: the number of tokens that fit from now on.
        """
        self.capacity = self._free = capacity
        self._memory: list[torch.Tensor] = []
        self._stack = np.empty(0, np.int64)  # the first self._free of these slots are free
        self._prefixes: OrderedDict[CachedPrefix, None] = OrderedDict()  # the least recently used first
        self._by_owner: dict[str, list[CachedPrefix]] = {}
        self._head: CachedPrefix | None = None

    def match(self, ids: Sequence[int], owner: str = "", shared: int = 0) -> tuple[CachedPrefix | None, int]:
        """Return the prefix of ``owner``, or the head, that begins most like ``ids``, and the number of equal tokens.

        :param shared: the number of tokens at the beginning of ``ids`` for which the head may be used.
        """
        self.sweep()
        key = key_of(ids)
        matches = [(prefix, common(prefix.key, key)) for prefix in self._neighbours(owner, key)]
        if self._head is not None:
            matches.insert(0, (self._head, min(shared, common(self._head.key, key))))
        best, same = max(matches, key=lambda match: match[1], default=(None, 0))
        if best is None or not same:
            return None, 0
        self._touch(best)
        return best, same

    def read(self, prefix: CachedPrefix, length: int, into: Parts) -> None:
        """Copy the first ``length`` tokens into a row."""
        slots = torch.from_numpy(prefix.slots[:length]).to(self._like[0].device)
        for memory, part in zip(self._memory, into, strict=True):
            part[:, :length] = memory.index_select(0, slots).transpose(0, 1)

    def put(self, ids: Sequence[int], parts: Parts, owner: str = "", shared: int = 0) -> None:
        """Keep a sequence, unless it does not fit or is the beginning of another one of ``owner``.

        :param parts: keys and values of at least these tokens. Copied.
        :param owner: HEAD drops everything else first.
        :param shared: as in :meth:`match`; these tokens are not copied if the head has them.
        """
        if owner == HEAD:  # another one begins everything anew
            self.clear(self.capacity)
        key = key_of(ids)
        neighbours = self._neighbours(owner, key)
        for neighbour in neighbours:
            if neighbour.key.startswith(key):
                self._touch(neighbour)
                return
        known = next((one for one in neighbours if key.startswith(one.key)), None)
        head = self._head
        borrowed = 0 if head is None else min(shared, common(head.key, key))
        if len(ids) - borrowed > self.capacity - (0 if head is None else len(head.slots)):
            return
        self._reserve_memory()
        slots = np.empty(0, np.int64) if head is None else head.slots[:borrowed]
        if known is not None:  # the new sequence continues it: only the rest is copied
            slots, borrowed = known.slots, known.borrowed
            self._remove(known)
        try:
            while len(self._prefixes) >= MAX_PREFIXES or self._free < len(ids) - len(slots):
                self._drop(next(iter(self._prefixes)))
            start = len(slots)
            slots = np.concatenate((slots, self._take(len(ids) - start)))
            places = torch.from_numpy(slots[start:]).to(self._like[0].device)
            for memory, part in zip(self._memory, parts, strict=True):
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
        """Drop prefixes that were not used for IDLE_SECONDS."""
        latest = self._clock() - IDLE_SECONDS
        while self._prefixes and (oldest := next(iter(self._prefixes))).used < latest:
            self._drop(oldest)

    def _neighbours(self, owner: str, key: bytes) -> list[CachedPrefix]:
        """Return the one or two prefixes of ``owner`` between which ``key`` is sorted in."""
        prefixes = self._by_owner.get(owner, [])
        at = bisect_left(prefixes, key, key=lambda prefix: prefix.key)
        return prefixes[max(0, at - 1) : at + 1]

    def _touch(self, prefix: CachedPrefix) -> None:
        if prefix is not self._head:
            prefix.used = self._clock()
            self._prefixes.move_to_end(prefix)

    def _insert(self, prefix: CachedPrefix) -> None:
        if prefix.owner == HEAD:
            self._head = prefix
            return
        self._prefixes[prefix] = None
        prefixes = self._by_owner.setdefault(prefix.owner, [])
        prefixes.insert(bisect_left(prefixes, prefix.key, key=lambda one: one.key), prefix)

    def _remove(self, prefix: CachedPrefix) -> None:
        """Take ``prefix`` out of the order; its slots stay taken."""
        del self._prefixes[prefix]
        prefixes = self._by_owner[prefix.owner]
        del prefixes[bisect_left(prefixes, prefix.key, key=lambda one: one.key)]
        if not prefixes:
            del self._by_owner[prefix.owner]

    def _drop(self, prefix: CachedPrefix) -> None:
        self._remove(prefix)
        self._release(prefix.slots[prefix.borrowed :])

    def _reserve_memory(self) -> None:
        """Allocate the tensors of all tokens, at the first one. A CPU's system fills pages in when they are written."""
        if not self._memory:
            self._memory = [one.new_empty(self.capacity, *one.shape) for one in self._like]
            self._stack = np.arange(self.capacity)[::-1].copy()

    def _take(self, count: int) -> np.ndarray:
        self._free -= count
        return self._stack[self._free : self._free + count][::-1].copy()

    def _release(self, slots: np.ndarray) -> None:
        self._stack[self._free : self._free + len(slots)] = slots[::-1]
        self._free += len(slots)


def key_of(ids: Sequence[int]) -> bytes:
    """Return ``ids`` as bytes that compare like them."""
    return np.asarray(ids, ">u4").tobytes()


def common(first: bytes, second: bytes) -> int:
    """Return the number of ids from the beginning on that two keys have in common."""
    length = min(len(first), len(second)) // 4
    one, other = (np.frombuffer(key, np.uint32, length) for key in (first, second))
    differing = np.flatnonzero(one != other)
    return int(differing[0]) if len(differing) else length
