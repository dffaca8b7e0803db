"""One turn of a conversation, from its place in the queue to the saved answer.

A turn runs in a task of its own, so that it ends in order whatever becomes of the request that began it. Knows nothing
of HTTP: it tells what happens as events, and is stopped by :meth:`RunningTurn.stop`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from aiochatstream.conversations.conversation import AnswerState, Conversation, Turn
from aiochatstream.conversations.user import SaveResult
from aiochatstream.engines import Delta, DeltaStream, FinishReason
from aiochatstream.errors import ChatStreamError, ConversationBusy, Draining, EngineFailed, TooManyRequests
from aiochatstream.runtime.admission import Ticket
from aiochatstream.runtime.events import Ended, Event, Failed, Heartbeat, Queued, Started, Text, Timing, Usage

logger = logging.getLogger(__name__)

StopReason = Literal["stopped", "left", "discarded", "shutdown"]
"""Asked to stop; the client is gone; the history is being cleared; the server is shutting down."""

ENDING_SECONDS = 2.0
"""How long a new turn waits for one that is ending."""

SAVE_SECONDS = 30.0
"""How long a conversation store may take."""

NOTICE_SECONDS = 0.2
"""How long it may take until it shows that the client of a running turn is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a turn is to do.

    before: the conversation that stays where there is no answer.
    base: the conversation that the answer joins; other than ``before`` when an answer is made again.
    begun: how the answer begins already.
    prompt_tokens: the prompt's length.
    generate: starts the generation; hands each delta to the function that it is given.
    save: keeps a conversation; None for an answer that belongs to none.
    leave: says what stays where there is no answer; None with that.
    on_gap: told the seconds between two pieces of text.
    retry_after: whole seconds for the one who waited in vain.
    """

    before: Conversation = field(default_factory=Conversation)
    base: Conversation = field(default_factory=Conversation)
    user_text: str = ""
    begun: str = ""
    prompt_tokens: int
    ticket: Ticket
    generate: Callable[[Callable[[Delta], None]], DeltaStream]
    save: Callable[[Conversation], Awaitable[SaveResult]] | None = None
    leave: Callable[[], Awaitable[SaveResult]] | None = None
    on_gap: Callable[[float], None]
    retry_after: Callable[[], int]
    max_queue_wait: float
    max_answer: float


@dataclass(eq=False)
class RunningTurn:
    """A turn under way. Made by :meth:`Turns.take`, set going by :meth:`Turns.start`."""

    message_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    user_text: str = ""
    begun: str = ""
    """What the answer had before this turn, which goes on from there."""
    text: str = ""
    conversation: Conversation = field(default_factory=Conversation)
    """As it was kept last: without the answer until :attr:`ended`."""
    base: Conversation | None = None
    """What the answer joins; None until the prompt is made."""

    def __post_init__(self) -> None:
        self.ended = asyncio.Event()
        self.holding = AsyncExitStack()
        """What is to be given back when it has ended."""
        self._loop = asyncio.get_running_loop()
        self._created = self._loop.time()
        self._granted: float | None = None
        self._first_text: float | None = None
        self._last_text: float | None = None
        self._prompt_tokens = self._completion_tokens = self._cached_tokens = 0
        self.last: Ended | Failed | None = None
        """How it ended; None until :attr:`ended`."""
        self._stop_reason: StopReason | None = None
        self._time_was_up = False
        self._finish_reason: FinishReason | None = None
        self._events: deque[Event] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._job: Job | None = None
        self._stream: DeltaStream | None = None

    @classmethod
    def saying(cls, text: str) -> RunningTurn:
        """One that has ended already, with words of the server's own: it takes no slot, and nothing of it is kept."""
        turn = cls(text=text)
        turn.stop("discarded")
        turn._tell(Started())
        turn._tell(Text(text))
        turn.end(turn._ended("stop"))
        return turn

    @property
    def position(self) -> int:
        """Its place in the queue, 1 is next; 0: it does not wait."""
        return 0 if self._job is None else self._job.ticket.position

    @property
    def ending(self) -> bool:
        """True from the moment when it is certain that no more text comes."""
        return self._stop_reason is not None or self._finish_reason is not None or self._time_was_up

    @property
    def discarded(self) -> bool:
        """True when the history was cleared meanwhile: nothing of this turn is to be kept."""
        return self._stop_reason == "discarded"

    def stop(self, reason: StopReason) -> None:
        """Stop waiting or generating, within one step. The text so far is kept, unless it is discarded."""
        if self._stop_reason is None or reason == "discarded":
            self._stop_reason = reason
        if self._stream is not None:
            self._stream.cancel()
        elif self._job is not None:
            self._job.ticket.release()

    def abandon(self) -> bool:
        """End even if the engine is stuck in a step: keep the text so far. Return whether the engine is stuck."""
        return self._stream is not None and self._stream.abandon()

    async def wait_ended(self, seconds: float = ENDING_SECONDS) -> bool:
        """Wait for the end; tell whether it came within ``seconds``."""
        try:
            await asyncio.wait_for(self.ended.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def next_event(self) -> Event:
        """What happens next; nothing comes after Ended or Failed. Safe to cancel: no event is lost."""
        while not self._events:
            self._reader = self._loop.create_future()
            await self._reader
        return self._events.popleft()

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    @contextmanager
    def heartbeats(self, seconds: float) -> Iterator[None]:
        """In this block, a Heartbeat comes among the events every so often, if the reader then waits for one."""
        timer: asyncio.TimerHandle | None = None

        def tick() -> None:
            nonlocal timer
            if self._reader is not None and not self._reader.done():
                self._tell(Heartbeat())
            timer = self._loop.call_later(seconds, tick)

        timer = self._loop.call_later(seconds, tick)
        try:
            yield
        finally:
            timer.cancel()

    def accept(self, job: Job) -> None:
        """Know what is to be done; :meth:`run` does it."""
        self._job = job
        self.user_text, self.begun = job.user_text, job.begun
        self._prompt_tokens = job.prompt_tokens
        self.base = job.base
        self.conversation = job.before

    async def run(self, job: Job) -> Ended | Failed:
        """Wait, generate, save; return the last event. Raises nothing."""
        failure: Exception | None = None
        try:
            await self._wait_for_slot(job)
            await self._generate(job)
        except Exception as error:  # noqa: BLE001 - whatever an engine raises
            failure = error
        finally:
            # the thread has stopped: who is next need not wait for the history
            job.ticket.release(answered=self._finish_reason is not None)
        try:
            return await self._conclude(job, failure)
        except ChatStreamError as error:
            return Failed(error)
        except Exception:
            logger.exception("The answer %s could not be kept", self.message_id)
            return Failed(EngineFailed(f"The answer could not be kept. (request {self.message_id})"))

    def end(self, last: Ended | Failed) -> None:
        """Tell of the end."""
        self.last = last
        self.ended.set()
        self._tell(last)

    async def _conclude(self, job: Job, failure: Exception | None) -> Ended | Failed:
        """Save what is to be kept, and say how the turn ended."""
        if self._time_was_up and self.text and self._finish_reason is None:
            self._finish_reason = "length"
        if self.discarded:
            return self._ended("cancelled")
        if failure is not None and self._stop_reason is None and self._finish_reason is None:
            kept = await self._keep(job.leave and job.leave())
            if isinstance(failure, ChatStreamError):
                return Failed(failure, kept)
            logger.error("The engine failed in request %s", self.message_id, exc_info=failure)
            history = "" if kept is None else " The history is as it was before; send again."
            return Failed(EngineFailed(f"The model failed to answer.{history} (request {self.message_id})"), kept)
        if failure is not None:
            logger.warning("The engine failed at the end of request %s", self.message_id, exc_info=failure)
        whole = self._finish_reason not in (None, "cancelled")
        if job.save is not None and (whole or self.text):
            state: AnswerState = "complete" if whole else "interrupted"
            turn = Turn(job.user_text, self.begun + self.text, self.message_id, state)
            kept = await self._keep(job.save(job.base.with_turn(turn)))
        else:
            kept = await self._keep(job.leave and job.leave())
        if self._stop_reason == "shutdown" and self._finish_reason is None:
            was = "" if kept is None else "; the answer so far was kept"
            return Failed(Draining(f"The server is shutting down{was}.", job.retry_after()), kept)
        return self._ended(self._finish_reason or ("length" if self._time_was_up else "cancelled"), kept)

    async def _keep(self, keeping: Awaitable[SaveResult] | None) -> SaveResult | None:
        if keeping is None:
            return None
        async with asyncio.timeout(SAVE_SECONDS):
            kept = await keeping
        self.conversation = kept.conversation
        return kept

    async def _wait_for_slot(self, job: Job) -> None:
        if self._stop_reason is not None:
            return
        await job.ticket.wait_enqueued()
        try:
            async with asyncio.timeout(job.max_queue_wait), aclosing(job.ticket.positions()) as positions:
                async for position in positions:
                    self._tell(Queued(position))
        except TimeoutError:
            detail = f"No slot became free within {job.max_queue_wait:g} seconds."
            raise TooManyRequests(detail, job.retry_after()) from None
        self._granted = self._loop.time()

    async def _generate(self, job: Job) -> None:
        if self._stop_reason is not None:
            return
        self._tell(Started())
        self._stream = job.generate(functools.partial(self._take, job.on_gap))
        limit = self._loop.call_later(job.max_answer, self._time_is_up)
        try:
            await self._stream.wait()
        finally:
            limit.cancel()

    def _take(self, on_gap: Callable[[float], None], delta: Delta) -> None:
        self._completion_tokens += len(delta.token_ids)
        self._cached_tokens += delta.cached_tokens
        self._prompt_tokens += delta.prompt_tokens
        if delta.text:
            now = self._loop.time()
            if self._last_text is None:
                self._first_text = now
            else:
                on_gap(now - self._last_text)
            self._last_text = now
            self.text += delta.text
        if delta.text or delta.logprobs:
            self._tell(Text(delta.text, delta.logprobs))
        self._finish_reason = delta.finish_reason or self._finish_reason

    def _time_is_up(self) -> None:
        self._time_was_up = True
        if self._stream is not None:
            self._stream.cancel()

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        return Usage(self._prompt_tokens, self._cached_tokens, self._completion_tokens)

    @property
    def timing(self) -> Timing:
        """The times so far."""
        now, first = self._loop.time(), self._first_text
        return Timing(
            queue_s=round((self._granted or now) - self._created, 4),
            ttft_s=None if first is None else round(first - self._created, 4),
            total_s=round(now - self._created, 4),
        )

    def _ended(self, finish_reason: FinishReason, kept: SaveResult | None = None) -> Ended:
        return Ended(finish_reason, self.usage, self.timing, kept)


Hold = Callable[[RunningTurn], AbstractAsyncContextManager[None]]
"""Has a conversation for a turn alone, against other processes, too."""


class Turns:
    """The turns under way in this process: at most one of each conversation.

    :param on_end: told of each turn that was set going when it has ended.
    """

    def __init__(self, on_end: Callable[[RunningTurn, Ended | Failed], None]) -> None:
        self._on_end = on_end
        self._turns: dict[tuple[str, str], RunningTurn] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._turns)

    def get(self, user_id: str, name: str) -> RunningTurn | None:
        """The turn of this conversation that is under way, if there is one."""
        return self._turns.get((user_id, name))

    def of_user(self, user_id: str) -> dict[str, RunningTurn]:
        """The turns of this user that are under way, by conversation."""
        return {name: turn for (owner, name), turn in self._turns.items() if owner == user_id}

    def take_new(self) -> RunningTurn:
        """Begin a turn of no conversation, as :meth:`take` does; its message id is its name, of the user ``""``."""
        turn = RunningTurn()
        self._turns["", turn.message_id] = turn
        return turn

    async def take(self, user_id: str, name: str, hold: Hold) -> RunningTurn:
        """Begin a turn of this conversation; then :meth:`start` it or :meth:`give_up`.

        Waits for one that is ending. Raises :class:`~aiochatstream.errors.ConversationBusy` where one is running, and
        what ``hold`` raises.
        """
        running = self.get(user_id, name)
        if running is not None and not await running.wait_ended(NOTICE_SECONDS) and running.ending:
            await running.wait_ended()
        self._check_free(user_id, name)
        turn = RunningTurn()
        await turn.holding.enter_async_context(hold(turn))
        try:
            self._check_free(user_id, name)  # holding may have taken its time
        except ConversationBusy:
            await turn.holding.aclose()
            raise
        self._turns[user_id, name] = turn
        return turn

    def _check_free(self, user_id: str, name: str) -> None:
        if (user_id, name) in self._turns:
            raise ConversationBusy("An answer of this conversation is running. Wait for it, or stop it.")

    def start(self, user_id: str, name: str, job: Job) -> None:
        """Set the taken turn going."""
        turn = self._turns[user_id, name]
        turn.accept(job)
        task = asyncio.create_task(self._run(user_id, name, turn, job), name=f"turn {turn.message_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def give_up(self, user_id: str, name: str) -> None:
        """Give back a taken turn that was not set going."""
        try:
            await self._turns[user_id, name].holding.aclose()
        finally:
            self._turns.pop((user_id, name)).ended.set()

    def stop_all(self, reason: StopReason) -> None:
        """Stop every turn under way."""
        for turn in self._turns.values():
            turn.stop(reason)

    def abandon_all(self) -> int:
        """Abandon every turn under way; return how many are stuck in their engine."""
        return sum([turn.abandon() for turn in self._turns.values()])

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until none of the turns that are now under way is left; tell whether that is so after ``seconds``."""
        if not self._tasks:
            return True
        _, running = await asyncio.wait(self._tasks, timeout=seconds)
        return not running

    async def _run(self, user_id: str, name: str, turn: RunningTurn, job: Job) -> None:
        last: Ended | Failed = Failed(EngineFailed(f"The answer broke off. (request {turn.message_id})"))
        try:
            async with turn.holding:
                last = await turn.run(job)
        finally:
            del self._turns[user_id, name]
            self._on_end(turn, last)
            turn.end(last)  # only now: a client that sends again at once finds its conversation free
