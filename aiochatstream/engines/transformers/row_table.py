"""Assignment of requests to rows of the KV cache."""

from __future__ import annotations

import logging
from collections.abc import Collection

from aiochatstream.engines.transformers.kv_cache import KVCache
from aiochatstream.engines.transformers.prefix_cache import PrefixCache
from aiochatstream.engines.transformers.request import Request

logger = logging.getLogger(__name__)


class RowTable:
    """Requests in the rows of the KV cache, sorted by size class.

    Rows of similar lengths are neighbours, because neighbours attend together, up to the length of the longest.
    """

    def __init__(self, kv_cache: KVCache, prefix_cache: PrefixCache, rows: int) -> None:
        self._kv_cache, self._prefix_cache = kv_cache, prefix_cache
        self.requests: list[Request] = []
        """Requests in the order of their admission."""
        self.free_rows = list(range(rows))
        self.prefix_hits = 0

    def admit(self, request: Request) -> None:
        """Assign a free row and load the cached prefix of the prompt. The row stays free if this raises."""
        self.free_rows.sort(reverse=True)
        request.row = self.free_rows.pop()
        try:
            self._sort_rows(request)
            if not request.params.prompt_logprobs:  # they need the logits of the whole prompt
                self._load_prefix(request)
        except Exception:
            self.free_rows.append(request.row)
            raise
        self.requests.append(request)

    def retire_finished(self) -> None:
        """Free the rows of finished requests and cache their keys and values for later prompts."""
        for request in [request for request in self.requests if request.finished]:
            self.requests.remove(request)
            self.free_rows.append(request.row)
            computed = request.ids[: request.computed_tokens]
            if request.failed or not request.has_output:  # a NaN would spread, even if it is masked
                self._kv_cache.clear(request.row, len(request.ids))
            elif computed and request.cacheable:
                row = self._kv_cache.row(request.row)
                try:
                    self._prefix_cache.store(computed, row, request.owner, request.shared_tokens)
                except Exception:  # most likely out of memory
                    logger.warning("Could not cache the KV entries of a finished answer", exc_info=True)

    def forget(self, owners: Collection[str]) -> None:
        """Drop the cached prefixes of ``owners``, and do not cache their running requests."""
        for owner in owners:
            self._prefix_cache.forget(owner)
        for request in self.requests:
            request.cacheable = request.cacheable and request.owner not in owners

    def clear(self) -> list[Request]:
        """Remove and return all requests."""
        requests, self.requests = self.requests, []
        return requests

    def _sort_rows(self, new: Request) -> None:
        """Exchange the row of ``new``, which is free, with other rows until all are sorted by size class.

        The other rows are already sorted: requests that leave do not change the order.
        """
        while True:
            smaller = [other for other in self.requests if other.row > new.row and other.size_class < new.size_class]
            larger = [other for other in self.requests if other.row < new.row and other.size_class > new.size_class]
            if smaller:
                other = min(smaller, key=lambda request: (request.size_class, -request.row))
            elif larger:
                other = max(larger, key=lambda request: (request.size_class, -request.row))
            else:
                return
            self._kv_cache.copy_row(other.row, new.row, other.computed_tokens)
            other.row, new.row = new.row, other.row

    def _load_prefix(self, request: Request) -> None:
        ids = request.ids[:-1]  # the last token is computed, for its logits
        prefix, length = self._prefix_cache.match(ids, request.owner, request.shared_tokens)
        if prefix is not None:
            self._prefix_cache.load(prefix, length, self._kv_cache.row(request.row))
            self.prefix_hits += 1
        request.computed_tokens = request.cached_tokens = length
