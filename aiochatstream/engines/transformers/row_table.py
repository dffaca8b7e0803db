"""Assignment of requests to rows and blocks of the KV cache."""

from __future__ import annotations

import logging
from bisect import insort
from collections.abc import Collection

from aiochatstream.engines.transformers.kv_cache import KVCache
from aiochatstream.engines.transformers.prefix_cache import PrefixCache, PrefixMatch
from aiochatstream.engines.transformers.request import Request

logger = logging.getLogger(__name__)


class RowTable:
    """Requests in the rows of the KV cache, each with the blocks that its prompt and answer need.

    :param prefix_cache: cache in the blocks that no request uses.
    """

    def __init__(self, kv_cache: KVCache, prefix_cache: PrefixCache, rows: int) -> None:
        self._kv_cache, self._prefix_cache = kv_cache, prefix_cache
        self.requests: list[Request] = []
        """Requests in the order of their admission."""
        self.free_rows = list(range(rows))
        self.prefix_hits = 0
        self._waiting: Request | None = None
        """Request for which there were not enough blocks; None since a request was retired."""

    def admit(self, request: Request) -> bool:
        """Assign a free row, the cached prefix of the prompt, and free blocks for the rest.

        Return False, and change nothing, if there are not enough blocks until other requests end. If this raises, the
        row and the blocks are free again.
        """
        if request is self._waiting:  # blocks become available and are cached only when a request is retired
            return False
        match = self._match(request)
        if match.partial is not None and not self._fits(request, match):  # the block may be one of the last ones
            match = PrefixMatch() if match.snapshot else PrefixMatch(match.blocks)
        if not self._fits(request, match):
            self._waiting = request
            return False
        self._prefix_cache.acquire(match.used)
        try:
            self._start(request, match, self._prefix_cache.reserve(self._missing_blocks(request, match)))
        except BaseException:
            self._prefix_cache.release(match.blocks)
            raise
        finally:
            if match.partial is not None:
                self._prefix_cache.release([match.partial])
        return True

    def retire_finished(self) -> None:
        """Free the rows of finished requests, and cache their blocks for later prompts. Errors are logged."""
        for request in [request for request in self.requests if request.finished]:
            try:
                self._retire(request)
            except Exception:  # most likely out of memory, which must not fail the running requests
                logger.exception("The keys and values of a finished request could not be cached or cleared")

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

    def _match(self, request: Request) -> PrefixMatch:
        if request.params.prompt_logprobs:  # they need the logits of the whole prompt
            return PrefixMatch()
        ids = request.ids[:-1]  # the last token is computed, for its logits
        return self._prefix_cache.match(ids, request.owner, request.shared_tokens)

    def _fits(self, request: Request, match: PrefixMatch) -> bool:
        """Return True if there are enough blocks besides those of ``match``."""
        return self._prefix_cache.can_reserve(self._missing_blocks(request, match), match.used)

    def _missing_blocks(self, request: Request, match: PrefixMatch) -> int:
        return self._kv_cache.blocks_for(request.end - 1) - len(match.blocks)  # the last token is never computed

    def _retire(self, request: Request) -> None:
        """Free the row of a finished request. If this raises, row and blocks are either free or still the request's."""
        is_valid = request.has_output and not request.failed
        if not is_valid:  # a NaN would spread, even if it is masked
            self._kv_cache.clear(request.blocks)
        self._waiting = None
        self.requests.remove(request)
        insort(self.free_rows, request.row)
        try:
            if is_valid and request.cacheable:
                computed = request.ids[: request.computed_tokens]
                options = request.owner, request.shared_tokens, request.row
                self._prefix_cache.insert(computed, request.cached_blocks, request.blocks, *options)
            else:
                self._prefix_cache.pool.release(request.blocks)
        finally:
            self._prefix_cache.release(request.cached_blocks)

    def _start(self, request: Request, match: PrefixMatch, blocks: list[int]) -> None:
        """Assign a row with ``blocks`` after those of ``match``. If this raises, the blocks are free."""
        row = self.free_rows[0]  # neighbouring rows are faster
        try:
            cached = [block.number for block in match.blocks]
            self._kv_cache.assign(row, cached + blocks, shared=len(cached))
            if match.partial is not None:
                self._kv_cache.copy_block(match.partial.number, blocks[0], match.partial_tokens)
            if match.snapshot is not None:
                self._kv_cache.states.load(match.snapshot, row)
        except BaseException:
            self._prefix_cache.pool.release(blocks)
            raise
        request.row, request.blocks, request.cached_blocks = row, blocks, match.blocks
        tokens = len(match.blocks) * self._kv_cache.block_size + match.partial_tokens
        request.computed_tokens = request.cached_tokens = tokens
        self.prefix_hits += tokens > 0
        self.free_rows.pop(0)
        self.requests.append(request)
