"""When requests are made: the closed loop and the open loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from aiochatstream.bench.prompts import Prompts
from aiochatstream.bench.protocols import Target
from aiochatstream.bench.request import Clock, Kind, Record, ask

DEFAULT_RETRY_AFTER = 1.0
"""Seconds that a refused user waits where the server does not say how long."""
LONGEST_REST = 10.0
"""Seconds that a refused user waits at most, whatever the server says."""
REST_AFTER_FAILURE = 0.1
"""Seconds that a user waits after a failure, so that a server that is gone does not make a hot loop."""
UNKNOWN_LENGTH = 64
"""Tokens that an answer is taken to have where the server's own setting decides."""


def gaps(rate: float, burstiness: float, rng: random.Random) -> Iterator[float]:
    """Seconds from one arrival to the next: gamma distributed with mean 1 / rate and shape ``burstiness``, as in vLLM's
    benchmark (which also rescales them to a fixed total; here they stay as drawn). Shape 1: a Poisson process."""
    while True:
        yield rng.gammavariate(burstiness, 1 / (rate * burstiness))


class Kinds:
    """Which requests hang up or read slowly: spread evenly over all, in exactly the asked proportions."""

    def __init__(self, abort_fraction: float, slow_fraction: float) -> None:
        self._abort_fraction = abort_fraction
        self._special_fraction = abort_fraction + slow_fraction
        self._drawn = self._aborts = self._specials = 0

    def next(self) -> Kind:
        """The kind of the next request."""
        self._drawn += 1
        if self._specials >= self._owed(self._special_fraction):
            return "plain"
        self._specials += 1
        if self._aborts >= self._owed(self._abort_fraction):
            return "slow"
        self._aborts += 1
        return "abort"

    def _owed(self, fraction: float) -> int:
        return int(self._drawn * fraction + 1e-9)


class Budget:
    """How many requests may still begin: so many, or those until a deadline, whichever ends first."""

    def __init__(self, requests: int | None, deadline: float, clock: Clock) -> None:
        self.taken = 0
        self.spent = asyncio.Event()
        self._requests = requests
        self._deadline = deadline
        self._clock = clock

    def take(self) -> bool:
        """Take one. False: there is none left."""
        if self.taken == self._requests or self._clock.now() >= self._deadline:
            self.spent.set()
            return False
        self.taken += 1
        if self.taken == self._requests:
            self.spent.set()
        return True

    async def rest(self, seconds: float) -> None:
        """Wait, but not longer than there is something left to take."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, self._deadline - self._clock.now())):
                await self.spent.wait()


@dataclass
class Load:
    """One run against ``target``; what is known of it at any moment. Times are clock readings in seconds.

    concurrency: None is the open loop.
    first_index: number of the first request, so that the prompts of later runs are others.
    records: of requests that ended, in the order of their ends.
    begun: requests that were sent; those without a record yet are under way, or were when the run was interrupted.
    cpu_s: CPU time that this process took meanwhile.
    """

    target: Target
    prompts: Prompts
    clock: Clock
    concurrency: int | None
    requests: int | None
    duration: float | None = None
    first_index: int = 0
    records: list[Record] = field(default_factory=list)
    begun: int = 0
    started: float = 0.0
    ended: float = 0.0
    cpu_s: float = 0.0

    def __post_init__(self) -> None:
        plan = self.target.plan
        self._kinds = Kinds(plan.abort_fraction, plan.slow_readers)
        self._rng = random.Random(f"{plan.seed}/{self.first_index}")  # noqa: S311 - nothing here is secret

    @property
    def unfinished(self) -> int:
        """Requests that have begun and not ended."""
        return self.begun - len(self.records)

    async def run(self) -> None:
        """Make all requests and wait for their ends."""
        self.started = self.ended = self.clock.now()
        deadline = float("inf") if self.duration is None else self.started + self.duration
        self._budget = Budget(self.requests, deadline, self.clock)
        cpu = self.clock.cpu()
        try:
            await (self._open_loop() if self.concurrency is None else self._closed_loop(self.concurrency))
            self.ended = max([self.started, *(record.ended for record in self.records)])
        except asyncio.CancelledError:
            self.ended = self.clock.now()  # the server was at work until now
            raise
        finally:
            self.cpu_s = self.clock.cpu() - cpu

    async def _closed_loop(self, concurrency: int) -> None:
        async def one_after_another() -> None:
            while await self._conversation(patient=True):
                pass

        async with asyncio.TaskGroup() as users:
            for _ in range(concurrency):
                users.create_task(one_after_another())

    async def _open_loop(self) -> None:
        plan = self.target.plan
        assert plan.rate is not None  # noqa: S101 - see Plan
        due = self.started
        async with asyncio.TaskGroup() as users:
            for gap in gaps(plan.rate, plan.burstiness or 1.0, self._rng):
                if not self._budget.take():
                    return
                users.create_task(self._conversation(due=due))
                due += gap
                await self.clock.sleep(max(0.0, due - self.clock.now()))

    async def _conversation(self, *, due: float | None = None, patient: bool = False) -> bool:
        """All turns of one new user. False: there was nothing left to ask.

        :param due: when the first request should be sent (open loop); it has been taken from the budget.
        :param patient: after a refusal, wait as the server says; after a failure, a moment.
        """
        user = self.target.new_user()
        async with user.session:
            for turn in range(1, self.target.plan.turns + 1):
                late = 0.0
                if due is not None and turn == 1:
                    late = max(0.0, self.clock.now() - due)
                elif not self._budget.take():
                    return False
                record = self._new_record(user.number, turn, late)
                await ask(self.target, user, self.prompts[record.index], record, self.clock)
                self.records.append(record)
                if patient:
                    await self._rest_after(record)
        return True

    async def _rest_after(self, record: Record) -> None:
        if record.outcome == "refused":
            told = DEFAULT_RETRY_AFTER if record.retry_after is None else record.retry_after
            await self._budget.rest(min(told, LONGEST_REST))
        elif record.outcome == "failed":
            await self._budget.rest(REST_AFTER_FAILURE)

    def _new_record(self, user: int, turn: int, late: float) -> Record:
        record = Record(self.first_index + self.begun, user, turn, self._kinds.next(), late=late)
        self.begun += 1
        if record.kind == "abort":
            record.abort_after = self._rng.randint(1, max(1, (self.target.plan.max_tokens or UNKNOWN_LENGTH) // 2))
        return record
