"""Engine whose answers other servers generate."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from aiochatstream.engines.base import AsyncEngine, Delta, LabelledMetric, Prompt
from aiochatstream.engines.upstream import hops
from aiochatstream.engines.upstream.attempts import ALL_BUSY, BUSY_SECONDS, Attempts
from aiochatstream.engines.upstream.client import ServerBusy, ServerFailed, count_tokens, stream_chunks
from aiochatstream.engines.upstream.context_fit import NEAR_LIMIT, TokenEstimate, drop_oldest_turns
from aiochatstream.engines.upstream.partial_answer import PartialAnswer
from aiochatstream.engines.upstream.pool import UpstreamPool
from aiochatstream.engines.upstream.relay import EVENTS, JSON, Receiver, RelayAttempt, RelayRequest
from aiochatstream.engines.upstream.request_body import cache_salt, check_params, request_of, salt_secret
from aiochatstream.engines.upstream.server import UpstreamServer, UpstreamSlot
from aiochatstream.engines.upstream.stream_chunks import StreamChunk
from aiochatstream.engines.upstream.upstream import Upstream
from aiochatstream.errors import ChatStreamError, ContextLengthExceeded, UpstreamFailed, UpstreamUnavailable
from aiochatstream.params import MAX_NEW_TOKENS, GenerationParams

BROKE_OFF = "The answer broke off: the server that generated it has failed."

RELAY_BROKE_OFF = "The answer broke off: the server that generated it has failed. Send the request again."

NEUTRAL_OWNER = "upstreams"
"""Owner of a model in the list of models that stands for no dialect."""

NO_CHUNKS: list[StreamChunk] = []
"""End of a stream."""

REFIT_SHARE = 0.7
"""Share of the room that a conversation gets after a server has refused it as too long."""


class UpstreamEngine(AsyncEngine):
    """Generates answers with other servers that have OpenAI's API: vLLM, SGLang, llama.cpp, aiochatstream and others.

    ::

        engine = UpstreamEngine(["http://gpu1:8000", Upstream("http://gpu2:8000", slots=128, api_key="...")])

    A conversation stays with one server, as long as that is up and not overloaded. If a server fails before the first
    text of an answer, another one generates it; after the first text, another one continues it. Prompts are sent as
    messages, which the servers render with their own chat template, or as token ids if there is a ``tokenizer``.
    Parameters that nobody has set are not sent: the servers' own values apply.

    :param upstreams: URLs, see :class:`Upstream`; at least one.
    :param model: name of the model; None for the only model of each server.
    :param slots: maximum number of concurrent answers of each server, 1 to 100,000. At most the server's own limit
        (vLLM's ``max_num_seqs``), so that requests wait in this server's queue only.
    :param first_text: seconds to wait for the first text of an answer before another server is tried.
    :param stall: seconds of silence of all answers of a server after which it counts as hung.
    :param connect: seconds to open a connection.
    :param tries: number of servers to try for an answer without new text, 1 to 100.
    :param resume: False ends an answer with an error if its server fails after the first text.
    :param tokenizer: HuggingFace tokenizer of the model, or a function that loads it, in a thread. Prompts are then
        token ids of this server's prompt classes, and conversations are cut exactly.
    :param share_prefixes: True lets the servers reuse the cached prompts of other users, where they distinguish users.
    :param affinity_header: header with a key that is equal for the requests of a conversation, for a router behind a
        URL; None sends none.

    Raises ValueError that names the parameter.
    """

    def __init__(
        self,
        upstreams: str | Upstream | Sequence[str | Upstream],
        *,
        model: str | None = None,
        slots: int = 64,
        first_text: float = 60.0,
        stall: float = 30.0,
        connect: float = 2.0,
        tries: int = 3,
        resume: bool = True,
        tokenizer: Any = None,
        share_prefixes: bool = False,
        affinity_header: str | None = "X-Session-Id",
    ) -> None:
        for name, seconds in (("first_text", first_text), ("stall", stall), ("connect", connect)):
            if not 0 < seconds <= 86_400:
                raise ValueError(f"{name}: must be a number of seconds above 0, up to 86400, not {seconds!r}.")
        if not 1 <= tries <= 100:
            raise ValueError(f"tries: must be a whole number from 1 to 100, not {tries!r}.")
        sources = [upstreams] if isinstance(upstreams, str | Upstream) else list(upstreams)
        self._pool = UpstreamPool(sources, slots=slots, connect=connect, stall=stall, model=model)
        self._model, self._first_text, self._tries, self._resume = model, first_text, tries, resume
        self._affinity_header = affinity_header
        self._load_tokenizer: Callable[[], Any] | None = None
        if tokenizer is not None:
            is_loader = callable(tokenizer) and not hasattr(tokenizer, "decode")  # tokenizers can be called, too
            self._load_tokenizer = tokenizer if is_loader else lambda: tokenizer
        keys = sorted({source.api_key for source in self._pool.upstreams if source.api_key is not None})
        self._salt_secret = None if share_prefixes else salt_secret(keys)
        self._context_len: int | None = None
        self._estimate = TokenEstimate()
        self._retries = self._resumptions = 0
        self._id = self.server_id = hops.new_server_id()

    async def load(self, slots: int | None, context_len: int | None) -> None:
        if self._load_tokenizer is not None:
            self.tokenizer = await asyncio.to_thread(self._load_tokenizer)
            self.vocab_size = len(self.tokenizer)
        self._context_len = context_len
        self._pool.on_capacity, self._pool.other_load = self._pool_changed, self.other_load
        await self._pool.open()
        self._pool_changed()

    async def close(self) -> None:
        await self._pool.close()

    def unavailable(self) -> ChatStreamError | None:
        return self._pool.unavailable()

    @property
    def owned_by(self) -> str:  # type: ignore[override]  # it changes with the servers
        """Owner that the servers report, as /v1 relays requests to them; a neutral one if they differ."""
        owners = {next(iter(server.dialect.owners), NEUTRAL_OWNER) for server in self._pool.servers}
        return owners.pop() if len(owners) == 1 else NEUTRAL_OWNER

    def server_load(self) -> dict[str, int]:
        return {server.name: server.running for server in self._pool.servers}

    def describe(self) -> dict[str, str]:
        servers = self._pool.servers
        name = self._model or next((server.model for server in servers), "unknown")
        return {"model": name, "servers": f"{len(servers)} of {self._pool.size} up"}

    def metrics(self) -> dict[str, float]:
        return {"upstream_retries_total": self._retries, "upstream_resumptions_total": self._resumptions}

    def labelled_metrics(self) -> list[LabelledMetric]:
        return self._pool.metrics()

    def check(self, params: GenerationParams) -> None:
        super().check(params)
        for server in self._pool.servers:
            check_params(params, server.dialect, renders=self.tokenizer is None)

    async def generate(self, prompt: Prompt, params: GenerationParams) -> AsyncGenerator[Delta, None]:
        answer = PartialAnswer(params.stop, holds_space=self._resume and prompt.chat and not prompt.token_ids)
        attempts, share, request = Attempts(self._tries), 1.0, (prompt, params)
        try:
            while answer.tokens_with_text < params.max_new_tokens:
                tokens = answer.tokens_with_text
                with await self._acquire(prompt, attempts, answer) as slot:
                    try:
                        if not answer.has_output:  # an answer that is resumed keeps its prompt
                            request = await self._fit(slot, prompt, params, share)
                        async with aclosing(self._attempt(slot, *request, answer)) as deltas:
                            async for delta in deltas:
                                yield delta
                        return
                    except ServerFailed:
                        self._retries += 1
                        self._check_resumable(slot, prompt, params, answer)
                        attempts.failed(slot.server, has_new_text=answer.tokens_with_text > tokens)
                    except ServerBusy:
                        attempts.busy(slot.server, has_new_text=answer.tokens_with_text > tokens)
                    except ContextLengthExceeded:
                        if not prompt.may_shorten or share < 1:
                            raise
                        share = REFIT_SHARE
        except ChatStreamError as error:
            if not answer.has_output:
                raise
            raise UpstreamFailed(BROKE_OFF) from error
        yield answer.cut_off()

    async def relay(self, request: RelayRequest, receiver: Receiver) -> AsyncGenerator[Delta, None]:
        """Pass a request to a server, and its response to ``receiver``. Yield the usage at the end.

        Until the response has begun, another server is tried if one fails or is busy. After that, nothing is tried
        again: unlike the answers of :meth:`generate`, relayed ones are not resumed.

        Raise :class:`RefusedRequest` with the response to a request that the server does not accept,
        :class:`~aiochatstream.errors.UpstreamFailed` if the response breaks off or all tries fail, and
        :class:`~aiochatstream.errors.UpstreamUnavailable` if all servers stay busy.
        """
        attempts = Attempts(self._tries)
        while True:
            slot = await self._pool.acquire(request.affinity, avoid=attempts.avoid, wait=attempts.wait_seconds)
            with slot:
                members = {**self._salt(slot.server, request.salt_owner), **request.members_for(slot.server)}
                try:
                    attempt = RelayAttempt(slot, request, receiver, self._first_text)
                    yield await attempt.run(self._headers(request.affinity, stream=request.stream), members)
                    return
                except ServerFailed:
                    self._retries += 1
                    if receiver.has_begun:
                        raise UpstreamFailed(RELAY_BROKE_OFF) from None
                    attempts.failed(slot.server, has_new_text=False)
                except ServerBusy as busy:
                    if receiver.has_begun:
                        raise UpstreamFailed(RELAY_BROKE_OFF) from None
                    self._check_patience(busy, slot.server, attempts)

    def _check_patience(self, busy: ServerBusy, server: UpstreamServer, attempts: Attempts) -> None:
        """Count a busy server. Raise :class:`~aiochatstream.errors.UpstreamUnavailable` if waiting does not help."""
        others = [other for other in self._pool.servers if other is not server and other not in attempts.avoid]
        if not others and (busy.retry_after or 0) > BUSY_SECONDS:
            raise UpstreamUnavailable(ALL_BUSY, retry_after=math.ceil(busy.retry_after or 0))
        attempts.busy(server, has_new_text=False)

    async def _acquire(self, prompt: Prompt, attempts: Attempts, answer: PartialAnswer) -> UpstreamSlot:
        return await self._pool.acquire(
            prompt.affinity, avoid=attempts.avoid, wait=attempts.wait_seconds, over_slots=answer.has_output
        )

    async def _attempt(
        self, slot: UpstreamSlot, prompt: Prompt, params: GenerationParams, answer: PartialAnswer
    ) -> AsyncGenerator[Delta, None]:
        """Yield the deltas that one server adds to the answer. Raise the errors of :func:`stream_chunks`."""
        self._check_resumable(slot, prompt, params, answer)
        self._resumptions += answer.has_output
        answer.begin_attempt()
        path, body = self._request(slot.server, prompt, params, answer)
        headers = self._headers(prompt.affinity, stream=True)
        async with aclosing(stream_chunks(slot, path, body, headers)) as reads:
            chunks = await self._first_output(reads)
            while chunks:
                for chunk in chunks:
                    for delta in answer.push(chunk):
                        yield delta
                    if answer.stopped:
                        yield answer.finish()
                        return
                chunks = await anext(reads, NO_CHUNKS)
        last = answer.finish()
        if prompt.chat and not prompt.token_ids:
            self._estimate.learn(prompt.messages, last.prompt_tokens)
        yield last

    async def _first_output(self, reads: AsyncGenerator[list[StreamChunk], None]) -> list[StreamChunk]:
        """Return the chunks up to the first text. Headers, roles and heartbeats do not count.

        Raise :class:`ServerFailed` if the server is too slow; it may be slow only for this prompt, and is not down.
        """
        chunks: list[StreamChunk] = []
        try:
            async with asyncio.timeout(self._first_text):
                while not any(chunk.has_output for chunk in chunks):
                    read = await anext(reads, NO_CHUNKS)
                    if not read:
                        break
                    chunks += read
        except TimeoutError:
            raise ServerFailed("no text in time") from None
        return chunks

    def _request(
        self, server: UpstreamServer, prompt: Prompt, params: GenerationParams, answer: PartialAnswer
    ) -> tuple[str, dict[str, Any]]:
        """Return the path and body of a request for the rest of ``answer``."""
        dialect = server.dialect
        changes: dict[str, Any] = {}
        if params.max_new_tokens < MAX_NEW_TOKENS:
            changes["max_new_tokens"] = max(1, params.max_new_tokens - answer.tokens_with_text)
        if prompt.token_ids and dialect.token_ids:
            changes["stop"] = ()  # a server that looks for them may send the text later than its token ids
        token_ids: Sequence[int] = answer.token_ids
        if prompt.token_ids and not answer.knows_ids:
            token_ids = self.tokenizer.encode(answer.text, add_special_tokens=False)
        path, body = request_of(
            prompt,
            params.model_copy(update=changes),
            dialect,
            text=answer.text,
            thinking=answer.thinking,
            token_ids=token_ids,
        )
        body["model"] = server.model
        return path, body | self._salt(server, prompt.owner)

    def _salt(self, server: UpstreamServer, owner: str) -> dict[str, str]:
        """Return the field that separates the cached prompts of ``owner``, if the server has one."""
        if self._salt_secret is None or not owner or server.dialect.cache_salt is None:
            return {}
        return {server.dialect.cache_salt: cache_salt(owner, self._salt_secret)}

    def _headers(self, affinity: str, *, stream: bool) -> dict[str, str]:
        headers = {
            "Accept": EVENTS if stream else JSON,
            "Content-Type": JSON,
            hops.HEADER: hops.outgoing(self._id),
        }
        if self._affinity_header is not None and affinity:
            headers[self._affinity_header] = affinity
        return headers

    def _check_resumable(
        self, slot: UpstreamSlot, prompt: Prompt, params: GenerationParams, answer: PartialAnswer
    ) -> None:
        """Raise :class:`~aiochatstream.errors.UpstreamFailed` if the answer has text that the server cannot continue.

        Penalties would count from the beginning of the new part only.
        """
        if not answer.has_output:
            return
        is_text = bool(prompt.token_ids) or not prompt.chat
        dialect = slot.server.dialect
        continues_message = dialect.continues_thoughts if answer.in_thought else dialect.continuing is not None
        if not (self._resume and (is_text or continues_message)) or params.presence_penalty or params.frequency_penalty:
            raise UpstreamFailed(BROKE_OFF)

    async def _fit(
        self, slot: UpstreamSlot, prompt: Prompt, params: GenerationParams, share: float
    ) -> tuple[Prompt, GenerationParams]:
        """Return a conversation without the oldest turns that do not fit the server's context, and a length that does.

        :param share: share of the room that the conversation may use.
        """
        limit = min((length for length in (slot.server.context_len, self._context_len) if length), default=None)
        if limit is None or prompt.token_ids or not prompt.may_shorten:
            return prompt, params
        room = share * (limit - min(params.max_new_tokens, limit // 2))
        estimates = [self._estimate([message]) for message in prompt.messages]
        tokens = sum(estimates)
        if tokens > NEAR_LIMIT * room and slot.server.dialect.tokenizes:
            tokens = await count_tokens(slot.server, prompt.messages) or tokens
            self._estimate.learn(prompt.messages, tokens)
        lengths = [tokens * estimate / sum(estimates) for estimate in estimates]
        messages = drop_oldest_turns(prompt.messages, lengths, room)
        left = max(1, int(limit - share * room)) if params.max_new_tokens > limit // 2 else params.max_new_tokens
        return replace(prompt, messages=messages), params.model_copy(update={"max_new_tokens": left})

    def _pool_changed(self) -> None:
        self.capacity = self._pool.capacity
        lengths = [server.context_len for server in self._pool.servers if server.context_len is not None]
        self.max_context_len = min(lengths, default=self.max_context_len)
        self.on_capacity()
