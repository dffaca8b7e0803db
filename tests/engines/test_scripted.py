"""Tests of mock answers: their texts, tokens and times."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiochatstream import ChatStream, Delta, GenerationParams, Prompt, ScriptedEngine
from aiochatstream.engines import DeltaStream
from aiochatstream.engines.scripted import split_tokens
from tests.engines.fake_timers import ManualTimer, VirtualTimer
from tests.helpers import Client, Server, StartServer, until


def prompt(text: str = "Hello") -> Prompt:
    return Prompt([{"role": "user", "content": "before"}, {"role": "user", "content": text}], [])


def answer(engine: ScriptedEngine, text: str = "Hello", **params: Any) -> str:
    params = {"max_new_tokens": 100_000, **params}
    return "".join(delta.text for delta in engine.generate(prompt(text), GenerationParams(**params)))


def fast_engine(*args: Any, **options: Any) -> ScriptedEngine:
    return ScriptedEngine(*args, timer=VirtualTimer(), **options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  wide world!\n", ["Hello,  ", "wide ", "world!\n"]),
        ("  so", ["  ", "so"]),
        ("首都は東京。", ["首", "都", "は", "東", "京", "。"]),
        ("これはtest です", ["こ", "れ", "は", "test ", "で", "す"]),
        (
            "か\u3099っ \u8fbb\U000e0100だ",
            ["か\u3099", "っ ", "\u8fbb\U000e0100", "だ"],
        ),  # two code points
        ("🍣👨‍👩‍👧 ok", ["🍣👨‍👩‍👧 ", "ok"]),
        ("한국어 문장", ["한국어 ", "문장"]),
        ("", []),
    ],
)
def test_a_token_is_a_japanese_character_or_another_word(text: str, expected: list[str]) -> None:
    assert list(split_tokens(text)) == expected


@given(st.text(st.sampled_from("aé 　\n\t、。東京ゲー゙가🍣\u3099\ufe0f\x00１ｱ") | st.characters()))
def test_the_tokens_join_to_the_text(text: str) -> None:
    assert "".join(split_tokens(text)) == text
    assert all(split_tokens(text))


def test_round_cycles_through_the_answers() -> None:
    engine = fast_engine(answers=["one", "two words"])
    assert [answer(engine) for _ in range(5)] == ["one", "two words", "one", "two words", "one"]


def test_round_has_default_answers_in_english_and_japanese() -> None:
    engine = fast_engine()
    texts = [answer(engine) for _ in range(8)]
    assert texts[:4] == texts[4:]
    assert len(set(texts)) == 4
    assert any(text.isascii() for text in texts)
    assert any(re.search("[ぁ-ん]", text) for text in texts)


def test_round_is_fair_among_concurrent_threads() -> None:
    engine = fast_engine(answers=["a", "b", "c"])
    with ThreadPoolExecutor(8) as threads:
        counts = Counter(threads.map(lambda _: answer(engine), range(300)))
    assert counts == {"a": 100, "b": 100, "c": 100}


def test_echo_repeats_the_newest_message() -> None:
    assert answer(fast_engine("echo"), "  Say 東京\n twice ") == "  Say 東京\n twice "


def test_long_is_long() -> None:
    text = answer(fast_engine("long"))
    assert len(list(split_tokens(text))) > 2000
    assert text.count("\n") > 50


def test_max_new_tokens_limits_the_tokens() -> None:
    deltas = list(fast_engine("echo").generate(prompt("one two three four"), GenerationParams(max_new_tokens=3)))
    assert "".join(delta.text for delta in deltas) == "one two three "
    assert sum(delta.token_count for delta in deltas) == 3
    assert [delta.finish_reason for delta in deltas if delta != Delta()] == [None, None, None, "length"]


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it() -> None:
    deltas = list(fast_engine("echo").generate(prompt("首都は東京です。"), GenerationParams(stop=("東京で",))))
    assert "".join(delta.text for delta in deltas) == "首都は"
    assert deltas[-1].finish_reason == "stop"


def test_the_engine_waits_before_the_first_token_and_between_tokens() -> None:
    timer = VirtualTimer(time=0.0)
    engine = ScriptedEngine("echo", initial_wait_sec=10, time_per_token_sec=0.5, timer=timer)
    timed = [(timer.time, delta) for delta in engine.generate(prompt("a b c"), GenerationParams())]
    assert [delta.text for _, delta in timed if delta.text] == ["a ", "b ", "c"]
    assert [time for time, delta in timed if delta.text] == pytest.approx([10, 10.5, 11])
    assert timed[-1][0] == pytest.approx(11)
    assert timed[-1][1] == Delta(finish_reason="stop")
    moments = [0.0, *(time for time, _ in timed)]
    assert max(after - before for before, after in pairwise(moments)) <= 0.05  # the maximum delay of a cancellation


def test_the_engine_does_not_wait_without_times() -> None:
    engine = ScriptedEngine("echo", time_per_token_sec=0)  # with a real clock, each wait yields an empty delta
    assert Delta() not in list(engine.generate(prompt("a b c"), GenerationParams()))


async def test_cancelling_ends_a_long_wait() -> None:
    timer = ManualTimer()
    engine = ScriptedEngine(initial_wait_sec=10, timer=timer)
    deltas: list[Delta] = []
    with ThreadPoolExecutor(1) as threads:
        stream = DeltaStream(threads, lambda: engine.generate(prompt(), GenerationParams()), deltas.append)
        await until(lambda: timer.sleeps == 1)
        stream.cancel()
        timer.allow(10_000)
        await stream.wait()
    assert (timer.sleeps, deltas) == (1, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "square"}, "type: must be 'round', 'echo' or 'long'"),
        ({"type": None}, "type: must be"),
        ({"initial_wait_sec": -1}, "initial_wait_sec: must be a number of seconds from 0 to 86400"),
        ({"time_per_token_sec": -0.1}, "time_per_token_sec: must be a number of seconds from 0 to 86400"),
        ({"time_per_token_sec": "fast"}, "time_per_token_sec"),
        ({"time_per_token_sec": float("nan")}, "time_per_token_sec"),
        ({"answers": []}, "answers: must be a list of one or more non-empty texts"),
        ({"answers": ["a", ""]}, "answers"),
        ({"answers": "abc"}, "answers"),
        ({"type": "echo", "answers": ["a"]}, "answers: must be None for type 'echo'"),
    ],
)
def test_an_invalid_argument_is_a_value_error_that_names_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ScriptedEngine(**options)


async def test_stopping_ends_the_wait_for_the_first_token(
    start: StartServer, client_of: Callable[[Server], Client]
) -> None:
    timer = ManualTimer()
    server = await start(ChatStream(engine=ScriptedEngine(initial_wait_sec=3600, timer=timer)))
    client = client_of(server)
    async with client.post(accept="text/event-stream", user_input="Hello"):
        await until(lambda: timer.sleeps == 1)
        async with client.post("/chat_stream/stop") as stopped:
            timer.allow(100_000)
            assert stopped.status == 200
    await until(lambda: server.idle)
    assert timer.sleeps <= 2
    assert await client.history() == []
