"""Mock answers: what they say, in which pieces and how slowly."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiochatstream import ChatStream, Delta, GenerationParams, Prompt, ScriptedEngine
from aiochatstream.engines import DeltaStream
from aiochatstream.engines.scripted import pieces
from tests.engines.timers import HeldTimer, VirtualTimer
from tests.helpers import until


def prompt(text: str = "Hello") -> Prompt:
    return Prompt([{"role": "user", "content": "before"}, {"role": "user", "content": text}], [])


def answer(engine: ScriptedEngine, text: str = "Hello", **params: Any) -> str:
    params = {"max_new_tokens": 100_000, **params}
    return "".join(delta.text for delta in engine.generate(prompt(text), GenerationParams(**params)))


def quick(*args: Any, **options: Any) -> ScriptedEngine:
    return ScriptedEngine(*args, timer=VirtualTimer(), **options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  wide world!\n", ["Hello,  ", "wide ", "world!\n"]),
        ("  so", ["  ", "so"]),
        ("首都は東京。", ["首", "都", "は", "東", "京", "。"]),
        ("これはtest です", ["こ", "れ", "は", "test ", "で", "す"]),
        ("か\u3099っ \u8fbb\U000e0100だ", ["か\u3099", "っ ", "\u8fbb\U000e0100", "だ"]),  # characters of two codes
        ("🍣👨‍👩‍👧 ok", ["🍣👨‍👩‍👧 ", "ok"]),
        ("한국어 문장", ["한국어 ", "문장"]),
        ("", []),
    ],
)
def test_japanese_goes_by_the_character_and_other_text_by_the_word(text: str, expected: list[str]) -> None:
    assert list(pieces(text)) == expected


@given(st.text(st.sampled_from("aé 　\n\t、。東京ゲー゙가🍣\u3099\ufe0f\x00１ｱ") | st.characters()))
def test_the_pieces_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text
    assert all(pieces(text))


def test_round_gives_the_answers_in_turn() -> None:
    engine = quick(answers=["one", "two words"])
    assert [answer(engine) for _ in range(5)] == ["one", "two words", "one", "two words", "one"]


def test_round_without_answers_has_some_in_english_and_japanese() -> None:
    engine = quick()
    said = [answer(engine) for _ in range(8)]
    assert said[:4] == said[4:]
    assert len(set(said)) == 4
    assert any(text.isascii() for text in said)
    assert any(re.search("[ぁ-ん]", text) for text in said)


def test_round_is_fair_when_many_threads_ask_at_once() -> None:
    engine = quick(answers=["a", "b", "c"])
    with ThreadPoolExecutor(8) as threads:
        said = Counter(threads.map(lambda _: answer(engine), range(300)))
    assert said == {"a": 100, "b": 100, "c": 100}


def test_echo_says_the_newest_message() -> None:
    assert answer(quick("echo"), "  Say 東京\n twice ") == "  Say 東京\n twice "


def test_long_is_long() -> None:
    text = answer(quick("long"))
    assert len(list(pieces(text))) > 2000
    assert text.count("\n") > 50


def test_no_more_than_max_new_tokens_pieces_come() -> None:
    deltas = list(quick("echo").generate(prompt("one two three four"), GenerationParams(max_new_tokens=3)))
    assert "".join(delta.text for delta in deltas) == "one two three "
    assert sum(len(delta.token_ids) for delta in deltas) == 3
    assert [delta.finish_reason for delta in deltas if delta != Delta()] == [None, None, None, "length"]


def test_a_stop_string_ends_the_answer_and_does_not_show_even_in_part() -> None:
    deltas = list(quick("echo").generate(prompt("首都は東京です。"), GenerationParams(stop=("東京で",))))
    assert "".join(delta.text for delta in deltas) == "首都は"
    assert deltas[-1].finish_reason == "stop"


def test_it_waits_before_the_first_token_and_between_two() -> None:
    timer = VirtualTimer(time=0.0)
    engine = ScriptedEngine("echo", initial_wait_sec=10, time_per_token_sec=0.5, timer=timer)
    told = [(timer.time, delta) for delta in engine.generate(prompt("a b c"), GenerationParams())]
    assert [delta.text for _, delta in told if delta.text] == ["a ", "b ", "c"]
    assert [time for time, delta in told if delta.text] == pytest.approx([10, 10.5, 11])
    assert (told[-1][0], told[-1][1]) == (pytest.approx(11), Delta(finish_reason="stop"))
    moments = [0.0, *(time for time, _ in told)]
    assert max(after - before for before, after in pairwise(moments)) <= 0.05  # a cancel waits


def test_without_times_it_does_not_wait() -> None:
    engine = ScriptedEngine("echo", time_per_token_sec=0)  # with a real clock: any wait would be an empty delta
    assert Delta() not in list(engine.generate(prompt("a b c"), GenerationParams()))


async def test_a_cancel_ends_a_long_wait_at_its_next_part() -> None:
    timer = HeldTimer()
    engine = ScriptedEngine(initial_wait_sec=10, timer=timer)
    taken: list[Delta] = []
    with ThreadPoolExecutor(1) as threads:
        stream = DeltaStream(threads, lambda: engine.generate(prompt(), GenerationParams()), taken.append)
        await until(lambda: timer.sleeps == 1)
        stream.cancel()
        timer.allow(10_000)
        await stream.wait()
    assert (timer.sleeps, taken) == (1, [])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"type": "square"}, "type: must be 'round', 'echo' or 'long'"),
        ({"type": None}, "type: must be"),
        ({"initial_wait_sec": -1}, "initial_wait_sec: must be a number of seconds from 0 to 86400"),
        ({"time_per_token_sec": -0.1}, "time_per_token_sec: must be a number of seconds from 0 to 86400"),
        ({"time_per_token_sec": "fast"}, "time_per_token_sec"),
        ({"time_per_token_sec": float("nan")}, "time_per_token_sec"),
        ({"answers": []}, "answers: must be a list of one text or more, none of them empty"),
        ({"answers": ["a", ""]}, "answers"),
        ({"answers": "abc"}, "answers"),
        ({"type": "echo", "answers": ["a"]}, "answers: go with type 'round', not with 'echo'"),
    ],
)
def test_an_option_out_of_its_range_is_a_value_error_that_names_both(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        ScriptedEngine(**options)


async def test_a_client_that_stops_ends_the_wait_for_the_first_token(start: Any, client_of: Any) -> None:
    timer = HeldTimer()
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
