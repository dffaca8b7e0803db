"""One running turn, from the queue to the saved answer.

Each turn runs in its own task, so that it ends in order even if the request that began it is cancelled. It reports its
progress as events; :meth:`RunningTurn.stop` stops it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from aiochatstream.conversations.conversation import AnswerState, Conversation, Turn
from aiochatstream.conversations.user import SaveResult
from aiochatstream.engines import AnswerStream, Delta, FinishReason, OnDelta
from aiochatstream.errors import ChatStreamError, Draining, EngineFailed, TooManyRequests
from aiochatstream.runtime.admission import Ticket
from aiochatstream.runtime.events import (
    AnswerTokens,
    Ended,
    Event,
    Failed,
    Heartbeat,
    PromptTokens,
    Queued,
    Started,
    Text,
    Thinking,
    Timing,
    ToolCalls,
    Usage,
)

logger = logging.getLogger(__name__)

StopReason = Literal["stopped", "left", "discarded", "shutdown"]
"""A request to stop; a disconnected client; a conversation that is cleared; a server that shuts down."""

ENDING_SECONDS = 2.0
"""Seconds that a new turn waits for one that is ending."""

SAVE_SECONDS = 30.0
"""Seconds that a conversation store may take to save an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Work of a turn. Times in seconds.

    before: conversation that remains if there is no answer.
    base: conversation to which the answer is added; it differs from ``before`` if an answer is replaced.
    prefix: text that the answer begins with.
    prefix_thinking: thoughts before that text.
    prompt_tokens: length of the prompt.
    prompt_ids: token ids of the prompt, if the client requests token ids: the turn then emits them and the answer's.
    tokens_needed: returns the tokens of the engine's memory that the answer needs.
    generate: starts the generation, and passes each delta to its argument.
    accepts_tool_calls: False if the client offers no tools; calls are then text.
    save: saves a conversation; None for an answer without a conversation.
    save_unanswered: records the end of a turn without an answer; None for an answer without a conversation.
    on_gap: called with the seconds between two pieces of text.
    retry_after: returns whole seconds for a client that waited for too long.
    max_queue_wait: maximum time in the queue.
    max_answer: maximum time of the generation.
    """

    before: Conversation = field(default_factory=Conversation)
    base: Conversation = field(default_factory=Conversation)
    user_text: str = ""
    prefix: str = ""
    prefix_thinking: str = ""
    prompt_tokens: int
    prompt_ids: Sequence[int] | None = None
    ticket: Ticket
    tokens_needed: Callable[[], int] = lambda: 0
    generate: Callable[[OnDelta], AnswerStream]
    accepts_tool_calls: bool = False
    save: Callable[[Conversation], Awaitable[SaveResult]] | None = None
    save_unanswered: Callable[[], Awaitable[SaveResult]] | None = None
    on_gap: Callable[[float], None]
    retry_after: Callable[[], int]
    max_queue_wait: float
    max_answer: float

    @property
    def replaces_answer(self) -> bool:
        """True if the answer replaces another one, which remains if the generation fails."""
        return not self.prefix and len(self.base.turns) < len(self.before.turns)


@dataclass(eq=False)
class RunningTurn:
    """A running turn, created by :meth:`Turns.begin` and started by :meth:`Turns.start`."""

    message_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    user_text: str = ""
    prefix: str = ""
    """Text of the answer before this turn, which continues it."""
    prefix_thinking: str = ""
    """The model's thoughts before this turn."""
    text: str = ""
    thinking: str = ""
    """The model's thoughts so far."""
    conversation: Conversation = field(default_factory=Conversation)
    """The conversation as it was saved last: without the answer until :attr:`ended`."""
    base: Conversation | None = None
    """Conversation to which the answer is added; None until the prompt is ready."""

    def __post_init__(self) -> None:
        self.ended = asyncio.Event()
        self.resources = AsyncExitStack()
        """Released when the turn has ended."""
        self._loop = asyncio.get_running_loop()
        self._created = self._loop.time()
        self._granted: float | None = None
        self._first_text: float | None = None
        self._last_text: float | None = None
        self._prompt_tokens = self._completion_tokens = self._cached_tokens = self._thinking_tokens = 0
        self.last: Ended | Failed | None = None
        """The last event; None until :attr:`ended`."""
        self._stop_reason: StopReason | None = None
        self._timed_out = self._has_calls = False
        self._finish_reason: FinishReason | None = None
        self._events: deque[Event] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._job: Job | None = None
        self._stream: AnswerStream | None = None

    @classmethod
    def with_text(cls, text: str) -> RunningTurn:
        """Return a finished turn whose answer is ``text``, written by the server. It uses no slot and is not saved."""
        turn = cls(text=text)
        turn.stop("discarded")
        turn._emit(Started())
        turn._emit(Text(text))
        turn.end(turn._ended("stop"))
        return turn

    @property
    def position(self) -> int:
        """Position in the queue, 1 is next; 0 if the turn does not wait."""
        return 0 if self._job is None else self._job.ticket.position

    @property
    def ending(self) -> bool:
        """True when no more text will follow."""
        return self._stop_reason is not None or self._finish_reason is not None or self._timed_out

    @property
    def discarded(self) -> bool:
        """True if the conversation is being cleared: nothing of this turn is saved."""
        return self._stop_reason == "discarded"

    def stop(self, reason: StopReason) -> None:
        """Stop waiting, or generating within one step. The text so far is saved unless the reason is ``discarded``."""
        if self._stop_reason is None or reason == "discarded":
            self._stop_reason = reason
        if self._stream is not None:
            self._stream.cancel()
        elif self._job is not None:
            self._job.ticket.release()

    def abandon(self) -> bool:
        """End with the text so far, even if the engine is stuck in a step. Return True if it is."""
        return self._stream is not None and self._stream.abandon()

    async def wait_ended(self, seconds: float = ENDING_SECONDS) -> bool:
        """Wait for the end, at most ``seconds``. Return True if the turn has ended."""
        try:
            await asyncio.wait_for(self.ended.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def next_event(self) -> Event:
        """Return the next event; there is none after Ended or Failed. Cancelling loses no event."""
        await self._wait_for_event()
        return self._events.popleft()

    async def next_events(self) -> list[Event]:
        """Return all events that have occurred since the last call, at least one. Cancelling loses no event."""
        await self._wait_for_event()
        events = [*self._events]
        self._events.clear()
        return events

    async def _wait_for_event(self) -> None:
        while not self._events:
            self._reader = self._loop.create_future()
            await self._reader

    def _emit(self, event: Event) -> None:
        self._events.append(event)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    @contextmanager
    def heartbeats(self, seconds: float) -> Iterator[None]:
        """Emit a Heartbeat every ``seconds`` in this block, if the reader is waiting for an event then."""
        timer: asyncio.TimerHandle | None = None

        def beat() -> None:
            nonlocal timer
            if self._reader is not None and not self._reader.done():
                self._emit(Heartbeat())
            timer = self._loop.call_later(seconds, beat)

        timer = self._loop.call_later(seconds, beat)
        try:
            yield
        finally:
            timer.cancel()

    def accept(self, job: Job) -> None:
        """Set the job that :meth:`run` performs."""
        self._job = job
        self.user_text, self.prefix, self.prefix_thinking = job.user_text, job.prefix, job.prefix_thinking
        self._prompt_tokens = job.prompt_tokens
        self.base = job.base
        self.conversation = job.before

    async def run(self, job: Job) -> Ended | Failed:
        """Wait, generate and save. Return the last event; raise nothing."""
        failure: Exception | None = None
        try:
            await self._wait_for_slot(job)
            await self._generate(job)
        except Exception as error:  # noqa: BLE001 - engines may raise anything
            failure = error
        finally:
            # the thread has stopped: the next request need not wait until the answer is saved
            job.ticket.release(answered=self._finish_reason is not None)
        try:
            return await self._conclude(job, failure)
        except ChatStreamError as error:
            return Failed(error)
        except Exception:
            logger.exception("Could not save the answer %s", self.message_id)
            return Failed(EngineFailed(f"The answer could not be saved. (request {self.message_id})"))

    def end(self, last: Ended | Failed) -> None:
        """Set and emit the last event."""
        self.last = last
        self.ended.set()
        self._emit(last)

    async def _conclude(self, job: Job, failure: Exception | None) -> Ended | Failed:
        """Save the answer, and return the last event."""
        if self._timed_out and (self.text or self.thinking) and self._finish_reason is None:
            self._finish_reason = "length" if self.text or self._has_calls else "thinking_length"
        if self.discarded:
            return self._ended("cancelled")
        if failure is not None and self._stop_reason is None and self._finish_reason is None:
            return await self._conclude_failure(job, failure)
        if failure is not None:
            logger.warning("The engine failed after the end of request %s", self.message_id, exc_info=failure)
        whole = self._finish_reason not in (None, "cancelled")
        result = await self._save_answer(job, "complete" if whole else "interrupted")
        if self._stop_reason == "shutdown" and self._finish_reason is None:
            saved = "" if result is None else "; the answer so far was saved"
            return Failed(Draining(f"The server is shutting down{saved}.", job.retry_after()), result)
        return self._ended(self._finish_reason or ("length" if self._timed_out else "cancelled"), result)

    async def _conclude_failure(self, job: Job, failure: Exception) -> Failed:
        """Save the answer so far, unless it was to replace a whole one, and return the last event."""
        if self.text and not job.replaces_answer:
            result = await self._save_answer(job, "interrupted")
            history = " The answer so far was saved."
        else:
            result = await self._save(job.save_unanswered and job.save_unanswered())
            history = " The conversation is unchanged; send again."
        history = "" if result is None else history
        if isinstance(failure, ChatStreamError):
            if self.text:
                failure.detail += history
            return Failed(failure, result)
        logger.error("The engine failed in request %s", self.message_id, exc_info=failure)
        return Failed(EngineFailed(f"The model failed to answer.{history} (request {self.message_id})"), result)

    async def _save_answer(self, job: Job, state: AnswerState) -> SaveResult | None:
        """Save the answer in its ``state``, or the end of a turn without an answer."""
        if job.save is None or not (self.text or state == "complete"):
            return await self._save(job.save_unanswered and job.save_unanswered())
        thinking = self.prefix_thinking + self.thinking
        turn = Turn(job.user_text, self.prefix + self.text, self.message_id, state, thinking)
        return await self._save(job.save(job.base.with_turn(turn)))

    async def _save(self, saving: Awaitable[SaveResult] | None) -> SaveResult | None:
        if saving is None:
            return None
        async with asyncio.timeout(SAVE_SECONDS):
            result = await saving
        self.conversation = result.conversation
        return result

    async def _wait_for_slot(self, job: Job) -> None:
        if self._stop_reason is not None:
            return
        job.ticket.claim(job.tokens_needed())
        await job.ticket.wait_enqueued()
        try:
            async with asyncio.timeout(job.max_queue_wait), aclosing(job.ticket.positions()) as positions:
                async for position in positions:
                    self._emit(Queued(position))
        except TimeoutError:
            detail = f"The answer could not start within {job.max_queue_wait:g} seconds."
            raise TooManyRequests(detail, job.retry_after()) from None
        self._granted = self._loop.time()

    async def _generate(self, job: Job) -> None:
        if self._stop_reason is not None:
            return
        self._emit(Started())
        if job.prompt_ids is not None:
            self._emit(PromptTokens(job.prompt_ids))
        self._stream = job.generate(functools.partial(self._add, job))
        limit = self._loop.call_later(job.max_answer, self._time_out)
        try:
            await self._stream.wait()
        finally:
            limit.cancel()

    def _add(self, job: Job, delta: Delta) -> None:
        self._completion_tokens += delta.token_count
        self._cached_tokens += delta.cached_tokens
        self._prompt_tokens = delta.prompt_tokens or self._prompt_tokens
        self._thinking_tokens += delta.thinking_tokens
        text, calls = delta.text, delta.tool_calls
        if calls and not job.accepts_tool_calls:
            text, calls = text + "".join(call.text for call in calls), ()
        self._has_calls = self._has_calls or bool(calls)
        if text or delta.thinking or calls:
            self.note_output(job.on_gap)
            self.text += text
            self.thinking += delta.thinking
        if delta.token_ids and job.prompt_ids is not None:
            self._emit(AnswerTokens(delta.token_ids))
        if delta.thinking:
            self._emit(Thinking(delta.thinking))
        if calls:
            self._emit(ToolCalls(calls))
        logprobs = delta.logprobs[delta.thinking_tokens :]  # a thought precedes the text
        if text or logprobs:
            self._emit(Text(text, logprobs))
        self._finish_reason = delta.finish_reason or self._finish_reason

    def note_output(self, on_gap: Callable[[float], None]) -> None:
        """Record the time of a piece of the answer, and call ``on_gap`` with the seconds since the last one."""
        now = self._loop.time()
        if self._last_text is None:
            self._first_text = now
        else:
            on_gap(now - self._last_text)
        self._last_text = now

    def _time_out(self) -> None:
        self._timed_out = True
        if self._stream is not None:
            self._stream.cancel()

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(self._prompt_tokens, self._cached_tokens, self._completion_tokens, self._thinking_tokens)

    @property
    def timing(self) -> Timing:
        """Times so far."""
        now, first = self._loop.time(), self._first_text
        return Timing(
            queue_s=round((self._granted or now) - self._created, 4),
            ttft_s=None if first is None else round(first - self._created, 4),
            total_s=round(now - self._created, 4),
        )

    def _ended(self, finish_reason: FinishReason, result: SaveResult | None = None) -> Ended:
        return Ended(finish_reason, self.usage, self.timing, result)
