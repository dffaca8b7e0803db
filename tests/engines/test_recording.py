"""Answers that are recorded, as files, and played back."""

from __future__ import annotations

import json
import logging
import shutil
import stat
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from aiochatstream import Constraint, Delta, Engine, GenerationParams, Prompt, RecordingEngine, ReplayEngine
from aiochatstream.engines import DeltaStream
from aiochatstream.errors import InvalidValue, NoRecording
from tests.engines.fake_timers import ManualTimer, VirtualTimer
from tests.helpers import PATIENCE, until

PARAMS = GenerationParams(stop=("終わり",), seed=2**63 - 1)

DELTAS = [
    Delta(cached_tokens=5),
    Delta("東京は\u2028", (1, 2)),
    Delta("", (3,)),
    Delta('🍣 "\n', (4,)),
    Delta("", (), "stop"),
]


def prompt(text: str = "首都は？") -> Prompt:
    return Prompt([{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}], [7, 8, 9])


class Saying(Engine):
    """Answers with what ``say(prompt)`` yields."""

    def __init__(self, say: Callable[[Prompt], Any]) -> None:
        self.say = say
        self.closed = 0

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        try:
            yield from self.say(prompt)
        finally:
            self.closed += 1


def record(folder: Path, *deltas: Delta, text: str = "首都は？", params: GenerationParams = PARAMS) -> None:
    """Record one answer."""
    assert list(RecordingEngine(Saying(lambda _: deltas), folder).generate(prompt(text), params)) == list(deltas)


def replay(folder: Path, **options: Any) -> ReplayEngine:
    engine = ReplayEngine(folder, **{"timer": VirtualTimer(), **options})
    engine.load(1, 100)
    return engine


def telling(deltas: Any) -> list[Delta]:
    return [delta for delta in deltas if delta != Delta()]


def text_of(engine: ReplayEngine, text: str = "首都は？", **params: Any) -> str:
    return "".join(delta.text for delta in engine.generate(prompt(text), PARAMS.model_copy(update=params)))


def test_what_was_recorded_is_played_back_delta_by_delta(tmp_path: Path) -> None:
    record(tmp_path, *DELTAS)
    first, *rest = telling(replay(tmp_path).generate(Prompt(prompt().messages, []), PARAMS))
    assert first == Delta(prompt_tokens=3)
    assert rest == DELTAS


@pytest.mark.parametrize(("speed", "expected"), [(1.0, [0.5, 2.5, 2.5]), (4, [0.125, 0.625, 0.625]), (None, [0, 0, 0])])
def test_it_is_played_in_the_recorded_time_divided_by_the_speed(
    tmp_path: Path, speed: float | None, expected: list[float]
) -> None:
    timer = VirtualTimer()

    def slowly(prompt: Prompt) -> Generator[Delta, None, None]:
        timer.sleep(0.5)
        yield Delta("a", (1,))
        timer.sleep(2.0)
        yield Delta()
        yield Delta("b", (2,))
        yield Delta(finish_reason="stop")

    list(RecordingEngine(Saying(slowly), tmp_path, timer=timer).generate(prompt(), PARAMS))
    timer = VirtualTimer(time=0.0)
    told = [(timer.time, delta) for delta in replay(tmp_path, speed=speed, timer=timer).generate(prompt(), PARAMS)]
    assert [time for time, delta in told if delta.text or delta.finish_reason] == pytest.approx(expected)
    assert max(after - before for before, after in pairwise([0.0, *(time for time, _ in told)])) <= 0.05


def test_a_file_is_lines_of_readable_json_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "probe"
    record(folder, *DELTAS)
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "首都は" in file.read_text("utf-8")
    head, *steps = [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]]
    assert head["messages"] == prompt().messages
    assert (head["token_ids"], head["finish_reason"]) == ([7, 8, 9], "stop")
    assert (head["params"]["seed"], head["params"]["stop"]) == (2**63 - 1, ["終わり"])
    assert [step.get("text", "") for step in steps] == [delta.text for delta in DELTAS]
    seconds = [step["seconds"] for step in steps]
    assert seconds == sorted(seconds)


def test_the_file_is_there_when_the_answer_is_over_and_not_before(tmp_path: Path) -> None:
    answer = RecordingEngine(Saying(lambda _: DELTAS), tmp_path).generate(prompt(), PARAMS)
    for _ in DELTAS:
        next(answer)
        assert list(tmp_path.iterdir()) == []
    assert next(answer, None) is None
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cancelled_answer_is_kept_as_cancelled_and_is_cancelled_when_it_is_played(tmp_path: Path) -> None:
    inner = Saying(lambda _: DELTAS)
    answer = RecordingEngine(inner, tmp_path).generate(prompt(), PARAMS)
    assert [next(answer), next(answer)] == DELTAS[:2]
    answer.close()
    assert inner.closed == 1
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text("utf-8").split("\n")[0])["finish_reason"] == "cancelled"
    played = telling(replay(tmp_path).generate(prompt(), PARAMS))[1:]
    assert played == [*DELTAS[:2], Delta(finish_reason="cancelled")]


def test_an_answer_that_failed_is_not_kept(tmp_path: Path) -> None:
    def failing(prompt: Prompt) -> Generator[Delta, None, None]:
        yield Delta("so far", (1,))
        raise ZeroDivisionError

    answer = RecordingEngine(Saying(failing), tmp_path).generate(prompt(), PARAMS)
    assert next(answer).text == "so far"
    with pytest.raises(ZeroDivisionError):
        next(answer)
    assert list(tmp_path.iterdir()) == []


def test_answers_that_are_recorded_at_once_have_a_file_each(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=PATIENCE)

    def in_step(prompt: Prompt) -> Generator[Delta, None, None]:
        for number in range(50):
            both.wait()
            yield Delta(f"{prompt.messages[-1]['content']}{number} ", (number,))
        yield Delta(finish_reason="stop")

    engine = RecordingEngine(Saying(in_step), tmp_path)
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(lambda text: list(engine.generate(prompt(text), PARAMS)), ["a", "b"]))
    assert len(list(tmp_path.iterdir())) == 2
    playing = replay(tmp_path)
    assert [telling(playing.generate(prompt(text), PARAMS))[1:] for text in ("a", "b")] == made


class Everything(Engine):
    """Has something to say to each call."""

    loads_slowly = True

    def load(self, slots: int, context_len: int) -> None:
        self.loaded = (slots, context_len)
        self.tokenizer, self.max_context_len = "tokenizer", 77
        self.on_step("prefill", 0.5)

    def close(self) -> None:
        self.loaded = (0, 0)

    def metrics(self) -> dict[str, float]:
        return {"batch_size": 3.0}

    def describe(self) -> dict[str, str]:
        return {"model": "everything"}

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        self.on_step("decode", 0.25)
        yield Delta("x", (1,), "stop")


def test_in_everything_else_a_recording_engine_is_the_engine_that_it_records(tmp_path: Path) -> None:
    inner = Everything()
    engine = RecordingEngine(inner, tmp_path)
    steps: list[tuple[str, float]] = []
    engine.on_step = lambda kind, seconds: steps.append((kind, seconds))
    assert engine.loads_slowly
    assert (engine.tokenizer, engine.max_context_len) == (None, None)
    engine.load(3, 100)
    assert inner.loaded == (3, 100)
    assert (engine.tokenizer, engine.max_context_len) == ("tokenizer", 77)
    assert (engine.metrics(), engine.describe()) == ({"batch_size": 3.0}, {"model": "everything"})
    list(engine.generate(prompt(), PARAMS))
    assert steps == [("prefill", 0.5), ("decode", 0.25)]
    with pytest.raises(InvalidValue, match="not supported by this engine"):
        engine.check(GenerationParams(constraint=Constraint("json_object")))
    engine.close()
    assert inner.loaded == (0, 0)
    assert not RecordingEngine(Saying(lambda _: DELTAS), tmp_path).loads_slowly


def test_a_folder_that_cannot_be_written_to_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Cannot record answers in .*/file/probe: Not a directory\."):
        RecordingEngine(Everything(), tmp_path / "file" / "probe")
    with pytest.raises(OSError, match=r"Cannot record answers in .*/file: File exists\."):
        RecordingEngine(Everything(), tmp_path / "file")


def test_where_a_file_cannot_be_written_the_answer_goes_on_and_the_log_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "probe"
    engine = RecordingEngine(Saying(lambda _: DELTAS), folder)
    shutil.rmtree(folder)
    for _ in range(3):
        assert list(engine.generate(prompt(), PARAMS)) == DELTAS
    (told,) = caplog.messages
    assert told == f"Cannot record answers in {folder}: No such file or directory"
    folder.mkdir()
    list(engine.generate(prompt(), PARAMS))
    assert len(list(folder.iterdir())) == 1
    shutil.rmtree(folder)
    list(engine.generate(prompt(), PARAMS))
    assert len(caplog.messages) == 2  # it had worked in between


def test_what_json_cannot_hold_does_no_harm_and_is_not_told_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    deltas = [Delta("secret \ud800", (1,)), Delta(finish_reason="stop")]
    assert list(RecordingEngine(Saying(lambda _: deltas), tmp_path).generate(prompt("secret"), PARAMS)) == deltas
    assert list(tmp_path.iterdir()) == []
    assert "Cannot record answers" in caplog.text
    assert "secret" not in caplog.text


# Which recording is played


def test_several_of_the_same_messages_are_played_in_turn(tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        record(tmp_path, Delta(name, (1,), "stop"))
    record(tmp_path, Delta("other", (1,), "stop"), text="something else")
    engine = replay(tmp_path)
    assert [text_of(engine) for _ in range(5)] == ["first", "second", "third", "first", "second"]
    engine.load(1, 100)
    assert text_of(engine) == "first"


def test_those_of_the_same_parameters_come_first_then_those_of_another_seed(tmp_path: Path) -> None:
    for temperature, seed in ((0.5, 1), (0.5, 2), (1.5, 1), (1.5, 2)):
        params = PARAMS.model_copy(update={"temperature": temperature, "seed": seed})
        record(tmp_path, Delta(f"{temperature} {seed}", (1,), "stop"), params=params)
    engine = replay(tmp_path)
    assert [text_of(engine, temperature=1.5, seed=2) for _ in range(2)] == ["1.5 2"] * 2
    assert [text_of(engine, temperature=0.5, seed=3) for _ in range(3)] == ["0.5 1", "0.5 2", "0.5 1"]
    engine.load(1, 100)
    assert [text_of(engine, temperature=0.1, seed=9) for _ in range(5)] == ["0.5 1", "0.5 2", "1.5 1", "1.5 2", "0.5 1"]


def test_an_answer_of_a_given_form_is_played_only_where_that_form_is_asked_for(tmp_path: Path) -> None:
    digits, letters = Constraint("regex", "[0-9]+"), Constraint("regex", "[a-z]+")
    record(tmp_path, Delta("12", (1,), "stop"), params=PARAMS.model_copy(update={"constraint": digits}))
    record(tmp_path, Delta("Hello", (1,), "stop"))
    engine = replay(tmp_path)
    assert text_of(engine, constraint=digits) == "12"
    assert [text_of(engine) for _ in range(2)] == ["Hello", "Hello"]
    with pytest.raises(NoRecording):
        text_of(engine, constraint=letters)


def test_a_prompt_that_was_never_recorded_is_an_error_of_its_own(tmp_path: Path) -> None:
    record(tmp_path, *DELTAS)
    with pytest.raises(NoRecording, match="There is not a recording of this prompt"):
        text_of(replay(tmp_path), "首都は？ ")


async def test_a_cancel_ends_a_wait_of_the_recording_at_its_next_part(tmp_path: Path) -> None:
    slow = VirtualTimer()

    def slowly(prompt: Prompt) -> Generator[Delta, None, None]:
        yield Delta("a", (1,))
        slow.sleep(3600)
        yield Delta("b", (2,), "stop")

    list(RecordingEngine(Saying(slowly), tmp_path, timer=slow).generate(prompt(), PARAMS))
    timer = ManualTimer()
    engine = replay(tmp_path, timer=timer)
    taken: list[Delta] = []
    with ThreadPoolExecutor(1) as threads:
        stream = DeltaStream(threads, lambda: engine.generate(prompt(), PARAMS), taken.append)
        await until(lambda: timer.sleeps == 1)
        stream.cancel()
        timer.allow(100_000)
        await stream.wait()
    assert (timer.sleeps, [delta.text for delta in taken]) == (1, ["", "a"])


# What is not a recording


def damage(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        file.write_text("".join(f"{line}\n" for line in change(file.read_text("utf-8").split("\n")[:-1])), "utf-8")

    return apply


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (damage(lambda lines: lines[:-1]), "is damaged: it does not contain the 5 deltas"),
        (damage(lambda lines: [*lines, lines[-1]]), "is damaged: it does not contain the 5 deltas"),
        (damage(lambda lines: [*lines[:-1], '{"seconds":9.0}']), "is damaged: it does not contain the 5 deltas"),
        (
            damage(lambda lines: [*lines[:2], lines[2][:9], *lines[3:]]),
            "damaged or not a recording: line 3: Invalid JSON",
        ),
        (damage(lambda lines: [lines[0], '{"seconds":-1}', *lines[2:]]), r"damaged: line 2\.seconds: .* 0"),
        (damage(lambda lines: [lines[0].replace("recording 1", "recording 2"), *lines[1:]]), r"line 1\.format: "),
        (damage(lambda lines: ['{"role": "user"}']), "damaged or not a recording: line 1"),
        (lambda file: file.write_bytes(b""), "damaged or not a recording: line 1"),
        (lambda file: file.write_bytes(b"\xff\xfe\x00"), "damaged or not a recording: line 1"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "is damaged"),
    ],
)
def test_a_damaged_file_is_told_by_its_name_at_the_start(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    record(tmp_path, *DELTAS)
    (file,) = tmp_path.iterdir()
    spoil(file)
    with pytest.raises(ValueError, match=says) as told:
        replay(tmp_path)
    assert file.name in str(told.value)
    assert "\n" not in str(told.value)


def test_anything_else_in_the_folder_is_told_but_hidden_files_are_none(tmp_path: Path) -> None:
    record(tmp_path, *DELTAS)
    (tmp_path / ".gitkeep").write_text("")
    replay(tmp_path)
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match="notes is not a recording: it is not a file"):
        replay(tmp_path)


def test_a_folder_without_recordings_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There are no recordings in"):
        replay(tmp_path)
    with pytest.raises(ValueError, match=r"There is no folder .*missing"):
        replay(tmp_path / "missing")


@pytest.mark.parametrize("speed", [0, -1, float("nan"), float("inf"), "fast"])
def test_a_speed_out_of_its_range_is_a_value_error(tmp_path: Path, speed: Any) -> None:
    with pytest.raises(ValueError, match="speed: must be a number above 0, or None for no waits, not "):
        ReplayEngine(tmp_path, speed)
