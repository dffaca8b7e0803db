"""From a blocking generator in a thread to the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from aiochatstream import Delta, FunctionEngine, GenerationParams, Prompt
from aiochatstream.engines import DeltaStream
from tests.helpers import PATIENCE, until

pytestmark = pytest.mark.both_loops


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def counting(steps: int) -> Generator[Delta, None, None]:
    for number in range(steps):
        yield Delta(f"{number} ", (number,))


class Stream(DeltaStream):
    """Keeps what it was told in ``taken``."""

    def __init__(self, threads: ThreadPoolExecutor, start: Callable[[], Generator[Delta, None, None]]) -> None:
        self.taken: list[Delta] = []
        super().__init__(threads, start, self.taken.append)


async def test_deltas_arrive_in_order_and_all_of_them(threads: ThreadPoolExecutor) -> None:
    stream = Stream(threads, lambda: counting(2000))
    await stream.wait()
    assert stream.taken == list(counting(2000))


async def test_an_exception_arrives_after_the_deltas_before_it(threads: ThreadPoolExecutor) -> None:
    def failing() -> Generator[Delta, None, None]:
        yield from counting(3)
        raise ZeroDivisionError("the engine broke")

    stream = Stream(threads, failing)
    with pytest.raises(ZeroDivisionError, match="the engine broke"):
        await stream.wait()
    assert stream.taken == list(counting(3))


async def test_what_fails_before_the_first_step_arrives_too(threads: ThreadPoolExecutor) -> None:
    def broken() -> Generator[Delta, None, None]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Stream(threads, broken).wait()


async def test_deltas_that_say_nothing_do_not_cross(threads: ThreadPoolExecutor) -> None:
    telling = [Delta("a"), Delta("", (5,)), Delta(finish_reason="stop")]

    def mixed() -> Generator[Delta, None, None]:
        for delta in telling:
            yield Delta()
            yield delta

    stream = Stream(threads, mixed)
    await stream.wait()
    assert stream.taken == telling


async def test_each_step_arrives_while_the_next_is_made(threads: ThreadPoolExecutor) -> None:
    permits = threading.Semaphore(0)

    def stepping() -> Generator[Delta, None, None]:
        for delta in counting(3):
            yield delta
            assert permits.acquire(timeout=PATIENCE)

    stream = Stream(threads, stepping)
    for number in range(3):
        await until(lambda expected=number + 1: len(stream.taken) == expected)
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

    stream = Stream(threads, stepping)
    await until(lambda: bool(stream.taken))
    stream.cancel()
    for _ in range(50):
        permits.release()
    await stream.wait()
    assert len(steps) <= 2


async def test_cancel_may_come_from_any_thread_at_any_time_and_again(threads: ThreadPoolExecutor) -> None:
    cancelled = threading.Event()

    def waiting() -> Generator[Delta, None, None]:
        yield Delta("x")
        assert cancelled.wait(PATIENCE)
        yield from counting(100)

    stream = Stream(threads, waiting)
    await until(lambda: bool(stream.taken))
    await asyncio.to_thread(stream.cancel)
    cancelled.set()
    await stream.wait()
    assert len(stream.taken) <= 2
    stream.cancel()
    await stream.wait()


async def test_cancelled_before_its_thread_is_free_it_never_begins(threads: ThreadPoolExecutor) -> None:
    free = threading.Event()
    busy = threads.submit(free.wait, PATIENCE)
    steps = []

    def noting() -> Generator[Delta, None, None]:
        steps.append(1)
        yield Delta("x")

    stream = Stream(threads, noting)
    stream.cancel()
    free.set()
    await stream.wait()
    assert busy.result()
    assert steps == stream.taken == []


@pytest.mark.parametrize("error", [StopIteration("x"), SystemExit("x"), KeyboardInterrupt("x")])
async def test_what_would_mean_something_else_on_the_event_loop_arrives_as_an_error(
    threads: ThreadPoolExecutor, error: BaseException
) -> None:
    class Raising:
        def __next__(self) -> Delta:
            raise error

        def close(self) -> None: ...

    def failing() -> Any:
        if isinstance(error, StopIteration):
            raise error  # from a step it is the end
        return Raising()

    with pytest.raises(RuntimeError, match=rf"The engine raised {type(error).__name__}\('x'\)"):
        await Stream(threads, failing).wait()


@pytest.mark.parametrize("end", ["exhausted", "failed", "cancelled", "given up"])
async def test_it_ends_only_after_the_thread_has_stopped(threads: ThreadPoolExecutor, end: str) -> None:
    may_go_on, closing, may_close = threading.Event(), threading.Event(), threading.Event()
    closed = []

    def steps() -> Generator[Delta, None, None]:
        try:
            yield Delta("x")
            assert may_go_on.wait(PATIENCE)
            if end == "failed":
                raise ZeroDivisionError
            if end != "exhausted":
                yield from counting(1000)
        finally:
            closing.set()
            assert may_close.wait(PATIENCE)
            closed.append(True)

    generator = steps()  # kept here, so that only closing it can run its end
    stream = Stream(threads, lambda: generator)
    await until(lambda: bool(stream.taken))
    if end == "cancelled":
        stream.cancel()
    waiter = asyncio.create_task(stream.wait())
    await asyncio.sleep(0)
    if end == "given up":
        waiter.cancel()
        await asyncio.sleep(0)
    may_go_on.set()
    await until(closing.is_set)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiter.done()
    may_close.set()
    if end in ("failed", "given up"):
        with pytest.raises(ZeroDivisionError if end == "failed" else asyncio.CancelledError):
            await waiter
    else:
        await waiter
    assert closed == [True]


async def test_what_the_taker_raises_stops_the_generator_and_arrives(threads: ThreadPoolExecutor) -> None:
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


async def test_a_loop_that_is_busy_does_not_hold_the_generator(threads: ThreadPoolExecutor) -> None:
    finished = threading.Event()

    def steps() -> Generator[Delta, None, None]:
        yield from counting(1000)
        finished.set()

    stream = Stream(threads, steps)
    assert finished.wait(PATIENCE)  # the loop stands still
    assert stream.taken == []
    await stream.wait()
    assert stream.taken == list(counting(1000))


MESSAGES = [{"role": "user", "content": "Hi"}]


def answers(function: Callable[..., Any], max_new_tokens: int = 10) -> Generator[Delta, None, None]:
    return FunctionEngine(function).generate(Prompt(MESSAGES, []), GenerationParams(max_new_tokens=max_new_tokens))


class Endless:
    """Counts its steps, and whether it was closed. Keeps its generator, so that only closing it can run its end."""

    def __init__(self) -> None:
        self.steps = 0
        self.closed = False
        self.pieces = self.count()

    def __call__(self, messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        return self.pieces

    def count(self) -> Generator[str, None, None]:
        try:
            while True:
                self.steps += 1
                yield f"{self.steps} "
        finally:
            self.closed = True


def test_a_function_is_told_the_messages_and_the_parameters() -> None:
    calls = []

    def noting(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        calls.append((messages, params))
        return iter(())

    list(answers(noting, 7))
    assert calls == [(MESSAGES, GenerationParams(max_new_tokens=7))]


@pytest.mark.parametrize("pieces", [["Hel", "lo"], []])
def test_a_function_that_ends_by_itself_has_stopped(pieces: list[str]) -> None:
    deltas = list(answers(lambda messages, params: iter(pieces)))
    assert [delta.text for delta in deltas if delta.text] == pieces
    assert [delta.finish_reason for delta in deltas] == [None] * len(pieces) + ["stop"]
    assert sum(len(delta.token_ids) for delta in deltas) == len(pieces)


def test_of_a_function_no_more_than_max_new_tokens_pieces_are_taken() -> None:
    endless = Endless()
    deltas = list(answers(endless, 3))
    assert "".join(delta.text for delta in deltas) == "1 2 3 "
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == [deltas[-1].finish_reason] == ["length"]
    assert (endless.steps, endless.closed) == (3, True)


def test_closing_the_answer_closes_the_function() -> None:
    endless = Endless()
    answer = answers(endless)
    next(answer)
    assert not endless.closed
    answer.close()
    assert (endless.steps, endless.closed) == (1, True)


@pytest.mark.parametrize("piece", [None, b"text", 1])
def test_a_function_that_yields_no_text_is_told_so(piece: Any) -> None:
    with pytest.raises(TypeError, match="yields str, not "):
        list(answers(lambda messages, params: iter([piece])))


def test_what_a_function_raises_comes_out_after_its_text() -> None:
    def failing(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        yield "so far"
        raise ZeroDivisionError

    answer = answers(failing)
    assert next(answer).text == "so far"
    with pytest.raises(ZeroDivisionError):
        next(answer)
