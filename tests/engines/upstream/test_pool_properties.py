"""Properties of the pool and of its choice, for any sequence of events."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from aiochatstream.engines.upstream import Upstream, dialects
from aiochatstream.engines.upstream import server as server_module
from aiochatstream.engines.upstream.choice import LOAD_SLACK, choose, load_bound
from aiochatstream.engines.upstream.dialects import PLAIN, Facts
from aiochatstream.engines.upstream.pool import UpstreamPool
from aiochatstream.engines.upstream.server import UpstreamServer, UpstreamSlot
from aiochatstream.engines.upstream.session import UpstreamSession
from aiochatstream.errors import UpstreamUnavailable

T = TypeVar("T")

KEYS = st.integers(0, 20).map(str)
PATIENCE = 1000.0


@given(st.lists(st.integers(1, 100), min_size=2, max_size=6), st.data())
@settings(deadline=None)
def test_only_the_keys_of_a_server_that_comes_or_goes_move(slots: list[int], data: st.DataObject) -> None:
    session: Any = None
    servers = [
        UpstreamServer(Upstream(f"http://{number}"), session, count, lambda server: None)
        for number, count in enumerate(slots)
    ]
    gone = data.draw(st.sampled_from(servers))
    left = [server for server in servers if server is not gone]
    for key in map(str, range(50)):
        before = choose(key, servers)
        assert choose(key, left) is before or before is gone


class PoolMachine(RuleBasedStateMachine):
    """Answers that start and end, and servers that fail, hang, drain, come and go, in any order."""

    slots: Bundle[UpstreamSlot] = Bundle("slots")

    @initialize(slots=st.lists(st.integers(1, 4), min_size=1, max_size=3), each=st.integers(1, 4))
    def start(self, slots: list[int], each: int) -> None:
        self.dead: set[str] = set()
        self.addresses = ["10.1.0.1"]
        self.normal: set[UpstreamSlot] = set()
        self.waiting: list[tuple[asyncio.Task[UpstreamSlot], bool]] = []
        self.stack = ExitStack()
        self.stack.enter_context(patch.object(dialects, "probe", self.probe))
        self.stack.enter_context(patch.object(server_module, "MIN_BACK_OFF", PATIENCE))
        self.stack.enter_context(patch.object(server_module, "MAX_BACK_OFF", PATIENCE))
        self.runner = self.stack.enter_context(asyncio.Runner())
        self.pool = UpstreamPool(
            [
                *(Upstream(f"http://10.0.0.{number}", slots=count) for number, count in enumerate(slots)),
                Upstream("dns+http://name", slots=each),
            ],
            resolve=self.resolve,
            refresh=PATIENCE,
        )
        self.capacity = 0
        self.pool.on_capacity = self.note_capacity
        self.run(self.pool.open())

    def teardown(self) -> None:
        for task, _ in self.waiting:
            task.cancel()
        self.run(self.pool.close())
        self.stack.close()

    async def probe(self, session: UpstreamSession, model: str | None) -> Facts:
        if session.base_url in self.dead:
            raise ConnectionRefusedError
        return Facts(PLAIN, "fake", None)

    async def resolve(self, name: str, port: int) -> list[str]:
        return self.addresses

    def note_capacity(self) -> None:
        self.capacity = self.pool.capacity

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work``, and then tasks until all of them wait."""

        async def settle() -> T:
            result = await work
            for _ in range(10):
                await asyncio.sleep(0)
            return result

        return self.runner.run(settle())

    def server(self, number: int) -> UpstreamServer:
        servers = [*self.pool._servers.values()]
        return servers[number % len(servers)]

    @rule(target=slots, key=KEYS, over_slots=st.booleans(), avoid=st.sets(st.integers(0, 3), max_size=3))
    def acquire(self, key: str, over_slots: bool, avoid: set[int]) -> MultipleResults[UpstreamSlot]:
        avoided = [self.server(number) for number in avoid]
        accepting = [server for server in self.pool._servers.values() if server.accepts(over_slots=over_slots)]
        running = {server: server.running for server in accepting}
        if not accepting:
            with pytest.raises(UpstreamUnavailable):
                self.run(self.pool.acquire(key, avoid=avoided, over_slots=over_slots))
            return multiple()
        slot = self.run(self.pool.acquire(key, avoid=avoided, over_slots=over_slots))
        candidates = [server for server in accepting if server not in avoided] or accepting
        assert slot.server in candidates
        assert slot.server.state == "up"
        assert not slot.server.removed
        total, slots = sum(running[server] for server in candidates), sum(server.slots for server in candidates)
        assert running[slot.server] + 1 <= load_bound(slot.server, total + 1, slots)
        assert (
            load_bound(slot.server, total + 1, slots) < 1.25 * (total + 1) * slot.server.slots / slots + 1 + LOAD_SLACK
        )
        if not over_slots:
            self.normal.add(slot)
        return multiple(slot)

    @rule(key=KEYS, over_slots=st.booleans())
    def wait(self, key: str, over_slots: bool) -> None:
        async def start() -> asyncio.Task[UpstreamSlot]:
            return asyncio.create_task(self.pool.acquire(key, over_slots=over_slots, wait=PATIENCE))

        self.waiting.append((self.run(start()), over_slots))

    @rule(number=st.integers(0, 9))
    def cancel(self, number: int) -> None:
        for task, _ in self.waiting[number : number + 1]:
            task.cancel()
            self.run(asyncio.sleep(0))
            self.waiting.pop(number)

    @rule(target=slots)
    def served(self) -> MultipleResults[UpstreamSlot]:
        """Return a slot that a waiting request has."""
        for entry in self.waiting:
            task, over_slots = entry
            if task.done():
                self.waiting.remove(entry)
                slot = task.result()
                if not over_slots:
                    self.normal.add(slot)
                return multiple(slot)
        return multiple()

    @rule(slot=consumes(slots))
    def release(self, slot: UpstreamSlot) -> None:
        self.normal.discard(slot)
        self.call(slot.release)

    def call(self, function: Any, *arguments: Any) -> None:
        async def called() -> None:
            function(*arguments)

        self.run(called())

    @rule(slot=slots, output=st.booleans())
    def hear(self, slot: UpstreamSlot, output: bool) -> None:
        self.call(lambda: slot.heard(output=output))

    @rule(slot=slots, dies=st.booleans())
    def fail(self, slot: UpstreamSlot, dies: bool) -> None:
        if dies:
            self.dead.add(slot.server.url)
        self.call(slot.failed, "reset")

    @rule(slot=slots)
    def be_busy(self, slot: UpstreamSlot) -> None:
        self.call(slot.busy, 5.0)

    @rule(slot=slots)
    def drain(self, slot: UpstreamSlot) -> None:
        self.call(slot.draining)

    @rule(number=st.integers(0, 9))
    def hang(self, number: int) -> None:
        self.call(self.server(number).hang, "silent")

    @rule(number=st.integers(0, 9))
    def resume(self, number: int) -> None:
        self.call(self.server(number).resume_requests)

    @rule(number=st.integers(0, 9))
    def recover(self, number: int) -> None:
        self.dead.discard(self.server(number).url)
        self.run(self.pool._probe(self.server(number)))

    @rule(addresses=st.lists(st.sampled_from(["10.1.0.1", "10.1.0.2", "10.1.0.3"]), max_size=3))
    def come_and_go(self, addresses: list[str]) -> None:
        self.addresses = addresses
        for source in self.pool._listed:
            self.run(self.pool._refresh_from(source))

    @invariant()
    def slots_are_enough(self) -> None:
        for server in self.pool._servers.values():
            normal = sum(slot.server is server for slot in self.normal)
            assert normal <= server.slots
            assert server.running >= normal
        servers = {*self.pool._servers.values()}
        assert all(slot.server in servers for slot in self.normal), "its session is closed"

    @invariant()
    def capacity_is_known(self) -> None:
        assert self.capacity == self.pool.capacity == sum(server.limit for server in self.pool.servers)
        assert (self.pool.unavailable() is None) == (self.capacity > 0) == bool(self.pool.servers)

    @invariant()
    def servers_are_those_listed_and_those_that_still_answer(self) -> None:
        urls = {f"http://{address}" for address in self.addresses}
        for server in self.pool._servers.values():
            if server.url.startswith("http://10.1."):
                assert server.removed == (server.url not in urls)
                assert not server.removed or server.running
        assert urls <= self.pool._servers.keys()

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        for over_slots in (False, True):
            accepting = [server for server in self.pool._servers.values() if server.accepts(over_slots=over_slots)]
            served = [task.done() for task, over in self.waiting if over is over_slots]
            assert served == sorted(served, reverse=True), "they are served in their order"
            assert all(served) or not accepting


PoolMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase
