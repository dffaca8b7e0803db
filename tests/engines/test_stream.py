"""Tests of the transfer of deltas from a thread to the event loop."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from aiochatstream import Delta
from aiochatstream.engines import AsyncDeltaStream, DeltaStream
from tests.helpers import PATIENCE, until

pytestmark = pytest.mark.both_loops


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def counting(steps: int) -> Generator[Delta, None, None]:
    for number in range(steps):
        yield Delta(f"{number} ", (number,))


class CollectingStream(DeltaStream):
    """A stream that collects its deltas."""

    def __init__(self, threads: ThreadPoolExecutor, start: Callable[[], Generator[Delta, None, None]]) -> None:
        self.deltas: list[Delta] = []
        super().__init__(threads, start, self.deltas.append)


async def test_all_deltas_arrive_in_order(threads: ThreadPoolExecutor) -> None:
    stream = CollectingStream(threads, lambda: counting(2000))
    await stream.wait()
    assert stream.deltas == list(counting(2000))


async def test_an_exception_is_raised_after_the_deltas_before_it(threads: ThreadPoolExecutor) -> None:
    def failing() -> Generator[Delta, None, None]:
        yield from counting(3)
        raise ZeroDivisionError("the engine broke")

    stream = CollectingStream(threads, failing)
    with pytest.raises(ZeroDivisionError, match="the engine broke"):
        await stream.wait()
    assert stream.deltas == list(counting(3))


async def test_an_exception_before_the_first_step_is_raised(threads: ThreadPoolExecutor) -> None:
    def broken() -> Generator[Delta, None, None]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await CollectingStream(threads, broken).wait()


async def test_empty_deltas_are_not_delivered(threads: ThreadPoolExecutor) -> None:
    deltas = [Delta("a"), Delta("", (5,)), Delta(finish_reason="stop")]

    def mixed() -> Generator[Delta, None, None]:
        for delta in deltas:
            yield Delta()
            yield delta

    stream = CollectingStream(threads, mixed)
    await stream.wait()
    assert stream.deltas == deltas


async def test_each_delta_arrives_before_the_next_step_ends(threads: ThreadPoolExecutor) -> None:
    permits = threading.Semaphore(0)

    def stepping() -> Generator[Delta, None, None]:
        for delta in counting(3):
            yield delta
            assert permits.acquire(timeout=PATIENCE)

    stream = CollectingStream(threads, stepping)
    for number in range(3):
        await until(functools.partial(lambda count: len(stream.deltas) == count, number + 1))
        permits.release()
    await stream.wait()


async def test_cancel_stops_within_one_step(threads: ThreadPoolExecutor) -> None:
    permits = threading.Semaphore(0)
    steps = []

    def stepping() -> Generator[Delta, None, None]:
        for number in range(50):
            steps.append(number)
            yield Delta("x")
            permits.acquire()

    stream = CollectingStream(threads, stepping)
    await until(lambda: bool(stream.deltas))
    stream.cancel()
    for _ in range(50):
        permits.release()
    await stream.wait()
    assert len(steps) <= 2


async def test_cancel_can_be_called_in_any_thread_and_repeatedly(threads: ThreadPoolExecutor) -> None:
    cancelled = threading.Event()

    def waiting() -> Generator[Delta, None, None]:
        yield Delta("x")
        assert cancelled.wait(PATIENCE)
        yield from counting(100)

    stream = CollectingStream(threads, waiting)
    await until(lambda: bool(stream.deltas))
    await asyncio.to_thread(stream.cancel)
    cancelled.set()
    await stream.wait()
    assert len(stream.deltas) <= 2
    stream.cancel()
    await stream.wait()


async def test_a_stream_that_is_cancelled_before_its_thread_is_free_never_starts(threads: ThreadPoolExecutor) -> None:
    free = threading.Event()
    busy = threads.submit(free.wait, PATIENCE)
    steps = []

    def noting() -> Generator[Delta, None, None]:
        steps.append(1)
        yield Delta("x")

    stream = CollectingStream(threads, noting)
    stream.cancel()
    free.set()
    await stream.wait()
    assert busy.result()
    assert steps == []
    assert stream.deltas == []


@pytest.mark.parametrize("error", [StopIteration("x"), SystemExit("x"), KeyboardInterrupt("x")])
async def test_exceptions_with_a_meaning_for_the_event_loop_become_runtime_errors(
    threads: ThreadPoolExecutor, error: BaseException
) -> None:
    class Raising:
        def __next__(self) -> Delta:
            raise error

        def close(self) -> None: ...

    def failing() -> Any:
        if isinstance(error, StopIteration):
            raise error  # raised by a step, it would be the end
        return Raising()

    with pytest.raises(RuntimeError, match=rf"The engine raised {type(error).__name__}\('x'\)"):
        await CollectingStream(threads, failing).wait()


@pytest.mark.parametrize("end", ["exhausted", "failed", "cancelled", "abandoned wait"])
async def test_wait_returns_only_after_the_thread_has_stopped(threads: ThreadPoolExecutor, end: str) -> None:
    may_continue, closing, may_close = threading.Event(), threading.Event(), threading.Event()
    closed = []

    def steps() -> Generator[Delta, None, None]:
        try:
            yield Delta("x")
            assert may_continue.wait(PATIENCE)
            if end == "failed":
                raise ZeroDivisionError
            if end != "exhausted":
                yield from counting(1000)
        finally:
            closing.set()
            assert may_close.wait(PATIENCE)
            closed.append(True)

    generator = steps()  # referenced here, so that only closing it runs its end
    stream = CollectingStream(threads, lambda: generator)
    await until(lambda: bool(stream.deltas))
    if end == "cancelled":
        stream.cancel()
    waiter = asyncio.create_task(stream.wait())
    await asyncio.sleep(0)
    if end == "abandoned wait":
        waiter.cancel()
        await asyncio.sleep(0)
    may_continue.set()
    await until(closing.is_set)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiter.done()
    may_close.set()
    if end in ("failed", "abandoned wait"):
        with pytest.raises(ZeroDivisionError if end == "failed" else asyncio.CancelledError):
            await waiter
    else:
        await waiter
    assert closed == [True]


async def test_an_exception_of_on_delta_stops_the_generator_and_is_raised(threads: ThreadPoolExecutor) -> None:
    steps = []

    def endless() -> Generator[Delta, None, None]:
        while True:
            steps.append(1)
            yield Delta("x")

    def refuse(delta: Delta) -> None:
        raise ZeroDivisionError("not a delta")

    with pytest.raises(ZeroDivisionError, match="not a delta"):
        await DeltaStream(threads, endless, refuse).wait()
    assert steps


async def test_a_busy_event_loop_does_not_block_the_generator(threads: ThreadPoolExecutor) -> None:
    finished = threading.Event()

    def steps() -> Generator[Delta, None, None]:
        yield from counting(1000)
        finished.set()

    stream = CollectingStream(threads, steps)
    assert finished.wait(PATIENCE)  # the event loop is blocked
    assert stream.deltas == []
    await stream.wait()
    assert stream.deltas == list(counting(1000))


async def counting_async(steps: int) -> AsyncGenerator[Delta, None]:
    for delta in counting(steps):
        yield delta


async def test_deltas_of_an_async_generator_arrive_in_order() -> None:
    deltas: list[Delta] = []
    await AsyncDeltaStream(lambda: counting_async(100), deltas.append).wait()
    assert deltas == list(counting(100))


async def test_an_exception_of_an_async_generator_is_raised_after_the_deltas_before_it() -> None:
    async def failing() -> AsyncGenerator[Delta, None]:
        async for delta in counting_async(3):
            yield delta
        raise ZeroDivisionError("the engine broke")

    deltas: list[Delta] = []
    with pytest.raises(ZeroDivisionError, match="the engine broke"):
        await AsyncDeltaStream(failing, deltas.append).wait()
    assert deltas == list(counting(3))


async def silent(events: list[str]) -> AsyncGenerator[Delta, None]:
    """Yield a delta, then wait without end."""
    try:
        yield Delta("x")
        await asyncio.Event().wait()
    finally:
        events.append("closed")


async def test_cancel_ends_an_async_generator_that_waits_and_wait_returns() -> None:
    events: list[str] = []
    deltas: list[Delta] = []
    stream = AsyncDeltaStream(lambda: silent(events), deltas.append)
    await until(lambda: bool(deltas))
    stream.cancel()
    stream.cancel()
    await stream.wait()
    assert events == ["closed"]
    assert deltas == [Delta("x")]
    assert not stream.abandon()


async def test_cancelling_the_waiting_task_ends_the_async_generator_first() -> None:
    events: list[str] = []
    stream = AsyncDeltaStream(lambda: silent(events), lambda delta: None)
    waiting = asyncio.create_task(stream.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert events == ["closed"]


async def test_abandon_returns_although_an_async_generator_ignores_its_cancellation() -> None:
    go_on = asyncio.Event()
    deltas: list[Delta] = []

    async def stubborn() -> AsyncGenerator[Delta, None]:
        yield Delta("x")
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                deltas.append(Delta("cancelled"))
        yield Delta("y")

    stream = AsyncDeltaStream(stubborn, deltas.append)
    await until(lambda: bool(deltas))
    assert stream.abandon()
    await stream.wait()
    go_on.set()
    await until(lambda: not stream.abandon())
    assert deltas == [Delta("x"), Delta("cancelled")]


async def test_an_error_of_the_receiver_ends_an_async_generator() -> None:
    events: list[str] = []

    def refuse(delta: Delta) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await AsyncDeltaStream(lambda: silent(events), refuse).wait()
    assert events == ["closed"]
