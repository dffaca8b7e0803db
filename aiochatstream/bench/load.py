"""Schedules of requests: the closed loop and the open loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from aiochatstream.bench.prompts import Prompts
from aiochatstream.bench.protocols import Target
from aiochatstream.bench.request import Clock, RequestKind, RequestRecord, send_request

DEFAULT_RETRY_AFTER = 1.0
"""Seconds that a refused user waits if the server sends no Retry-After."""
MAX_RETRY_AFTER = 10.0
"""Maximum seconds that a refused user waits, whatever the server requests."""
FAILURE_WAIT = 0.1
"""Seconds that a user waits after a failure, so that a dead server does not cause a hot loop."""
ASSUMED_ANSWER_TOKENS = 64
"""Assumed length of an answer if the server's own setting determines it."""


def arrival_gaps(rate: float, burstiness: float, rng: random.Random) -> Iterator[float]:
    """Yield seconds between successive arrivals, gamma distributed with mean 1 / rate and shape ``burstiness``.

    vLLM's benchmark draws from the same distribution, but rescales the gaps to a fixed total. Shape 1 is a Poisson
    process.
    """
    while True:
        yield rng.gammavariate(burstiness, 1 / (rate * burstiness))


class KindSchedule:
    """Kinds of successive requests: aborts and slow readers in exact proportions, evenly spread."""

    def __init__(self, abort_fraction: float, slow_fraction: float) -> None:
        self._abort_fraction = abort_fraction
        self._special_fraction = abort_fraction + slow_fraction
        self._count = self._aborts = self._specials = 0

    def next(self) -> RequestKind:
        """Return the kind of the next request."""
        self._count += 1
        if self._specials >= self._quota(self._special_fraction):
            return "plain"
        self._specials += 1
        if self._aborts >= self._quota(self._abort_fraction):
            return "slow"
        self._aborts += 1
        return "abort"

    def _quota(self, fraction: float) -> int:
        return int(self._count * fraction + 1e-9)


class RequestBudget:
    """Number of requests that may still start, limited by a count, a deadline or both."""

    def __init__(self, requests: int | None, deadline: float, clock: Clock) -> None:
        self.exhausted = asyncio.Event()
        self._count = 0
        self._requests = requests
        self._deadline = deadline
        self._clock = clock

    def take(self) -> bool:
        """Take one request from the budget. Return False if none is left."""
        if self._count == self._requests or self._clock.now() >= self._deadline:
            self.exhausted.set()
            return False
        self._count += 1
        if self._count == self._requests:
            self.exhausted.set()
        return True

    async def wait(self, seconds: float) -> None:
        """Sleep for ``seconds``, or until the budget is exhausted."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, self._deadline - self._clock.now())):
                await self.exhausted.wait()


@dataclass
class LoadRun:
    """One run against ``target``, readable while it runs. Times are clock readings in seconds.

    concurrency: number of users in the closed loop; None for the open loop.
    first_index: number of the first request, so that each run has its own prompts.
    records: finished requests, in the order of their ends.
    sent: number of requests that were sent. Those without a record are running, or were when the run was interrupted.
    cpu_s: CPU time of this process during the run.
    """

    target: Target
    prompts: Prompts
    clock: Clock
    concurrency: int | None
    requests: int | None
    duration: float | None = None
    first_index: int = 0
    records: list[RequestRecord] = field(default_factory=list)
    sent: int = 0
    start: float = 0.0
    end: float = 0.0
    cpu_s: float = 0.0

    def __post_init__(self) -> None:
        plan = self.target.plan
        self._kinds = KindSchedule(plan.abort_fraction, plan.slow_readers)
        self._rng = random.Random(f"{plan.seed}/{self.first_index}")  # noqa: S311 - not security-relevant

    @property
    def unfinished(self) -> int:
        """Number of requests that were sent and have not ended."""
        return self.sent - len(self.records)

    async def run(self) -> None:
        """Send all requests and wait for their ends."""
        self.start = self.end = self.clock.now()
        deadline = float("inf") if self.duration is None else self.start + self.duration
        self._budget = RequestBudget(self.requests, deadline, self.clock)
        cpu = self.clock.cpu()
        try:
            await (self._open_loop() if self.concurrency is None else self._closed_loop(self.concurrency))
            self.end = max([self.start, *(record.end for record in self.records)])
        except asyncio.CancelledError:
            self.end = self.clock.now()  # the server was busy until now
            raise
        finally:
            self.cpu_s = self.clock.cpu() - cpu

    async def _closed_loop(self, concurrency: int) -> None:
        async def repeat_conversations() -> None:
            while await self._conversation(patient=True):
                pass

        async with asyncio.TaskGroup() as users:
            for _ in range(concurrency):
                users.create_task(repeat_conversations())

    async def _open_loop(self) -> None:
        plan = self.target.plan
        assert plan.rate is not None  # noqa: S101 - see Plan
        due = self.start
        async with asyncio.TaskGroup() as users:
            for gap in arrival_gaps(plan.rate, plan.burstiness or 1.0, self._rng):
                if not self._budget.take():
                    return
                users.create_task(self._conversation(due=due))
                due += gap
                await self.clock.sleep(max(0.0, due - self.clock.now()))

    async def _conversation(self, *, due: float | None = None, patient: bool = False) -> bool:
        """Send all turns of a new user. Return False if the budget is exhausted.

        :param due: time to send the first request (open loop), which was taken from the budget before.
        :param patient: wait after refusals, as the server requests, and briefly after failures.
        """
        user = self.target.new_user()
        async with user.session:
            for turn in range(1, self.target.plan.turns + 1):
                lateness = 0.0
                if due is not None and turn == 1:
                    lateness = max(0.0, self.clock.now() - due)
                elif not self._budget.take():
                    return False
                record = self._new_record(user.number, turn, lateness)
                await send_request(self.target, user, self.prompts[record.index], record, self.clock)
                self.records.append(record)
                if patient:
                    await self._wait_after(record)
        return True

    async def _wait_after(self, record: RequestRecord) -> None:
        if record.outcome == "refused":
            seconds = DEFAULT_RETRY_AFTER if record.retry_after is None else record.retry_after
            await self._budget.wait(min(seconds, MAX_RETRY_AFTER))
        elif record.outcome == "failed":
            await self._budget.wait(FAILURE_WAIT)

    def _new_record(self, user: int, turn: int, lateness: float) -> RequestRecord:
        record = RequestRecord(self.first_index + self.sent, user, turn, self._kinds.next(), lateness=lateness)
        self.sent += 1
        if record.kind == "abort":
            tokens = self.target.plan.max_tokens or ASSUMED_ANSWER_TOKENS
            record.abort_after = self._rng.randint(1, max(1, tokens // 2))
        return record
