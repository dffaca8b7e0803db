"""The running turns of a process: at most one of each conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

from aiochatstream.errors import ConversationBusy, EngineFailed
from aiochatstream.runtime.events import Ended, Failed
from aiochatstream.runtime.running_turn import Job, RunningTurn, StopReason

NOTICE_SECONDS = 0.2
"""Seconds until the disconnect of a client is noticed."""

Hold = Callable[[RunningTurn], AbstractAsyncContextManager[None]]
"""Context manager that holds a conversation for one turn, among all processes."""


class Turns:
    """The running turns of this process: at most one of each conversation.

    :param on_end: called with each started turn that has ended, and its last event.
    """

    def __init__(self, on_end: Callable[[RunningTurn, Ended | Failed], None]) -> None:
        self._on_end = on_end
        self._turns: dict[tuple[str, str], RunningTurn] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[RunningTurn]:
        return iter(list(self._turns.values()))

    def get(self, user_id: str, name: str) -> RunningTurn | None:
        """Return the running turn of a conversation, if there is one."""
        return self._turns.get((user_id, name))

    def of_user(self, user_id: str) -> dict[str, RunningTurn]:
        """Return the running turns of a user, by conversation."""
        return {name: turn for (owner, name), turn in self._turns.items() if owner == user_id}

    def begin_stateless(self) -> RunningTurn:
        """Begin a turn without a conversation, like :meth:`begin`; its name is its message id, its user id is empty."""
        turn = RunningTurn()
        self._turns["", turn.message_id] = turn
        return turn

    async def begin(self, user_id: str, name: str, hold: Hold) -> RunningTurn:
        """Begin a turn of a conversation. Then :meth:`start` or :meth:`cancel` it.

        Wait for a turn that is ending. Raise :class:`~aiochatstream.errors.ConversationBusy` if a turn is running, and
        the errors of ``hold``.
        """
        running = self.get(user_id, name)
        if running is not None and not await running.wait_ended(NOTICE_SECONDS) and running.ending:
            await running.wait_ended()
        self._check_free(user_id, name)
        turn = RunningTurn()
        await turn.resources.enter_async_context(hold(turn))
        try:
            self._check_free(user_id, name)  # another turn may have begun in the meantime
        except ConversationBusy:
            await turn.resources.aclose()
            raise
        self._turns[user_id, name] = turn
        return turn

    def _check_free(self, user_id: str, name: str) -> None:
        if (user_id, name) in self._turns:
            raise ConversationBusy("An answer of this conversation is running. Wait for it or stop it.")

    def start(self, user_id: str, name: str, job: Job) -> None:
        """Start a turn that has begun."""
        turn = self._turns[user_id, name]
        turn.accept(job)
        task = asyncio.create_task(self._run(user_id, name, turn, job), name=f"turn {turn.message_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cancel(self, user_id: str, name: str) -> None:
        """End a turn that was not started."""
        try:
            await self._turns[user_id, name].resources.aclose()
        finally:
            self._turns.pop((user_id, name)).ended.set()

    def stop_all(self, reason: StopReason) -> None:
        """Stop every running turn."""
        for turn in self._turns.values():
            turn.stop(reason)

    def abandon_all(self) -> int:
        """Abandon every running turn. Return the number of turns that are stuck in the engine."""
        return sum([turn.abandon() for turn in self._turns.values()])

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait up to ``seconds`` for the end of all running turns. Return True if all have ended."""
        if not self._tasks:
            return True
        _, running = await asyncio.wait(self._tasks, timeout=seconds)
        return not running

    async def _run(self, user_id: str, name: str, turn: RunningTurn, job: Job) -> None:
        last: Ended | Failed = Failed(EngineFailed(f"The answer ended unexpectedly. (request {turn.message_id})"))
        try:
            async with turn.resources:
                last = await turn.run(job)
        finally:
            del self._turns[user_id, name]
            self._on_end(turn, last)
            turn.end(last)  # last, so that the next request of this client finds the conversation free
