"""Tests of recorded answers and their replay."""

from __future__ import annotations

import json
import logging
import shutil
import stat
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from aiochatstream import Constraint, Delta, Engine, GenerationParams, Prompt, RecordingEngine, ReplayEngine
from aiochatstream.engines import DeltaStream
from aiochatstream.engines.base import LabelledMetric, ToolCall
from aiochatstream.errors import InvalidValue, NoRecording
from tests.engines.fake_timers import ManualTimer, VirtualTimer
from tests.helpers import PATIENCE, until

PARAMS = GenerationParams(stop=("終わり",), seed=2**63 - 1)

DELTAS = [
    Delta(cached_tokens=5),
    Delta(token_ids=(5, 6), thinking="考える\u2028", thinking_tokens=2),
    Delta("東京は\u2028", (1, 2)),
    Delta("", (3,)),
    Delta('🍣 "\n', (4,)),
    Delta("", (9,), tool_calls=(ToolCall("f", '{"a": "🍣"}', "<call>"), ToolCall("g", "{}", "g()"))),
    Delta("", (), "stop"),
]


def prompt(text: str = "首都は？") -> Prompt:
    return Prompt([{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}], [7, 8, 9])


class DeltaEngine(Engine):
    """An engine that yields the deltas of ``deltas_for(prompt)``."""

    def __init__(self, deltas_for: Callable[[Prompt], Any]) -> None:
        self.deltas_for = deltas_for
        self.closed = 0

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        try:
            yield from self.deltas_for(prompt)
        finally:
            self.closed += 1


def record(folder: Path, *deltas: Delta, text: str = "首都は？", params: GenerationParams = PARAMS) -> None:
    assert list(RecordingEngine(DeltaEngine(lambda _: deltas), folder).generate(prompt(text), params)) == list(deltas)


def replay(folder: Path, **options: Any) -> ReplayEngine:
    engine = ReplayEngine(folder, **{"timer": VirtualTimer(), **options})
    engine.load(1, 100)
    return engine


def without_empty(deltas: Iterable[Delta]) -> list[Delta]:
    return [delta for delta in deltas if delta != Delta()]


def text_of(engine: ReplayEngine, text: str = "首都は？", **params: Any) -> str:
    return "".join(delta.text for delta in engine.generate(prompt(text), PARAMS.model_copy(update=params)))


def test_recordings_are_replayed_delta_by_delta(tmp_path: Path) -> None:
    record(tmp_path, *DELTAS)
    first, *rest = without_empty(replay(tmp_path).generate(Prompt(prompt().messages, []), PARAMS))
    assert first == Delta(prompt_tokens=3)
    assert rest == DELTAS


@pytest.mark.parametrize(("speed", "expected"), [(1.0, [0.5, 2.5, 2.5]), (4, [0.125, 0.625, 0.625]), (None, [0, 0, 0])])
def test_replay_takes_the_recorded_time_divided_by_the_speed(
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

    list(RecordingEngine(DeltaEngine(slowly), tmp_path, timer=timer).generate(prompt(), PARAMS))
    timer = VirtualTimer(time=0.0)
    timed = [(timer.time, delta) for delta in replay(tmp_path, speed=speed, timer=timer).generate(prompt(), PARAMS)]
    assert [time for time, delta in timed if delta.text or delta.finish_reason] == pytest.approx(expected)
    assert max(after - before for before, after in pairwise([0.0, *(time for time, _ in timed)])) <= 0.05


def test_files_from_before_thoughts_and_tool_calls_are_replayed(tmp_path: Path) -> None:
    record(tmp_path, Delta("a", (1,)), Delta("", (), "stop"))
    (file,) = tmp_path.iterdir()
    header, *steps = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert all(not step.keys() & {"thinking", "tool_calls", "thinking_tokens"} for step in steps)
    for name in ("thinking", "max_thinking_tokens"):
        del header["params"][name]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in (header, *steps)), "utf-8")
    assert text_of(replay(tmp_path)) == "a"


def test_a_file_contains_json_lines_and_is_readable_only_by_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "probe"
    record(folder, *DELTAS)
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "首都は" in file.read_text("utf-8")
    header, *steps = [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]]
    assert header["messages"] == prompt().messages
    assert (header["token_ids"], header["finish_reason"]) == ([7, 8, 9], "stop")
    assert (header["params"]["seed"], header["params"]["stop"]) == (2**63 - 1, ["終わり"])
    assert [step.get("text", "") for step in steps] == [delta.text for delta in DELTAS]
    seconds = [step["seconds"] for step in steps]
    assert seconds == sorted(seconds)


def test_the_file_is_written_after_the_answer(tmp_path: Path) -> None:
    answer = RecordingEngine(DeltaEngine(lambda _: DELTAS), tmp_path).generate(prompt(), PARAMS)
    for _ in DELTAS:
        next(answer)
        assert list(tmp_path.iterdir()) == []
    assert next(answer, None) is None
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cancelled_answer_is_recorded_and_replayed_as_cancelled(tmp_path: Path) -> None:
    inner = DeltaEngine(lambda _: DELTAS)
    answer = RecordingEngine(inner, tmp_path).generate(prompt(), PARAMS)
    assert [next(answer), next(answer)] == DELTAS[:2]
    answer.close()
    assert inner.closed == 1
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text("utf-8").split("\n")[0])["finish_reason"] == "cancelled"
    played = without_empty(replay(tmp_path).generate(prompt(), PARAMS))[1:]
    assert played == [*DELTAS[:2], Delta(finish_reason="cancelled")]


def test_a_failed_answer_is_not_recorded(tmp_path: Path) -> None:
    def failing(prompt: Prompt) -> Generator[Delta, None, None]:
        yield Delta("so far", (1,))
        raise ZeroDivisionError

    answer = RecordingEngine(DeltaEngine(failing), tmp_path).generate(prompt(), PARAMS)
    assert next(answer).text == "so far"
    with pytest.raises(ZeroDivisionError):
        next(answer)
    assert list(tmp_path.iterdir()) == []


def test_concurrent_answers_have_separate_files(tmp_path: Path) -> None:
    barrier = threading.Barrier(2, timeout=PATIENCE)

    def in_step(prompt: Prompt) -> Generator[Delta, None, None]:
        for number in range(50):
            barrier.wait()
            yield Delta(f"{prompt.messages[-1]['content']}{number} ", (number,))
        yield Delta(finish_reason="stop")

    engine = RecordingEngine(DeltaEngine(in_step), tmp_path)
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda text: list(engine.generate(prompt(text), PARAMS)), ["a", "b"]))
    assert len(list(tmp_path.iterdir())) == 2
    replaying = replay(tmp_path)
    assert [without_empty(replaying.generate(prompt(text), PARAMS))[1:] for text in ("a", "b")] == answers


class FullEngine(Engine):
    """An engine that implements all methods."""

    loads_slowly = True

    def load(self, slots: int, context_len: int | None) -> None:
        self.loaded = (slots, context_len)
        self.tokenizer, self.max_context_len = "tokenizer", 77
        self.response_template = {"fields": {}}
        self.on_step("prefill", 0.5)

    def close(self) -> None:
        self.loaded = (0, 0)

    def metrics(self) -> dict[str, float]:
        return {"batch_size": 3.0}

    def labelled_metrics(self) -> list[LabelledMetric]:
        return [LabelledMetric("up", {"server": "a"}, 1)]

    def describe(self) -> dict[str, str]:
        return {"model": "full"}

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        self.on_step("decode", 0.25)
        yield Delta("x", (1,), "stop")


def test_other_methods_are_those_of_the_wrapped_engine(tmp_path: Path) -> None:
    inner = FullEngine()
    engine = RecordingEngine(inner, tmp_path)
    steps: list[tuple[str, float]] = []
    engine.on_step = lambda kind, seconds: steps.append((kind, seconds))
    assert engine.loads_slowly
    assert (engine.tokenizer, engine.max_context_len) == (None, None)
    engine.load(3, 100)
    assert inner.loaded == (3, 100)
    assert (engine.tokenizer, engine.max_context_len) == ("tokenizer", 77)
    assert engine.response_template == {"fields": {}}
    assert (engine.metrics(), engine.describe()) == ({"batch_size": 3.0}, {"model": "full"})
    assert engine.labelled_metrics() == [("up", {"server": "a"}, 1)]
    list(engine.generate(prompt(), PARAMS))
    assert steps == [("prefill", 0.5), ("decode", 0.25)]
    with pytest.raises(InvalidValue, match="not supported by this engine"):
        engine.check(GenerationParams(constraint=Constraint("json_object")))
    engine.close()
    assert inner.loaded == (0, 0)
    assert not RecordingEngine(DeltaEngine(lambda _: DELTAS), tmp_path).loads_slowly


def test_an_unwritable_folder_is_an_error_at_construction(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Cannot record answers in .*/file/probe: Not a directory\."):
        RecordingEngine(FullEngine(), tmp_path / "file" / "probe")
    with pytest.raises(OSError, match=r"Cannot record answers in .*/file: File exists\."):
        RecordingEngine(FullEngine(), tmp_path / "file")


def test_a_write_error_is_logged_once_and_does_not_end_the_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "probe"
    engine = RecordingEngine(DeltaEngine(lambda _: DELTAS), folder)
    shutil.rmtree(folder)
    for _ in range(3):
        assert list(engine.generate(prompt(), PARAMS)) == DELTAS
    (message,) = caplog.messages
    assert message == f"Cannot record answers in {folder}: No such file or directory"
    folder.mkdir()
    list(engine.generate(prompt(), PARAMS))
    assert len(list(folder.iterdir())) == 1
    shutil.rmtree(folder)
    list(engine.generate(prompt(), PARAMS))
    assert len(caplog.messages) == 2  # a file was written in between


def test_text_that_json_cannot_encode_is_not_recorded_and_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    deltas = [Delta("secret \ud800", (1,)), Delta(finish_reason="stop")]
    assert list(RecordingEngine(DeltaEngine(lambda _: deltas), tmp_path).generate(prompt("secret"), PARAMS)) == deltas
    assert list(tmp_path.iterdir()) == []
    assert "Cannot record answers" in caplog.text
    assert "secret" not in caplog.text


# Choice of the recording


def test_several_recordings_of_the_same_messages_are_replayed_in_turn(tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        record(tmp_path, Delta(name, (1,), "stop"))
    record(tmp_path, Delta("other", (1,), "stop"), text="something else")
    engine = replay(tmp_path)
    assert [text_of(engine) for _ in range(5)] == ["first", "second", "third", "first", "second"]
    engine.load(1, 100)
    assert text_of(engine) == "first"


def test_recordings_with_equal_parameters_are_preferred_then_those_with_another_seed(tmp_path: Path) -> None:
    for temperature, seed in ((0.5, 1), (0.5, 2), (1.5, 1), (1.5, 2)):
        params = PARAMS.model_copy(update={"temperature": temperature, "seed": seed})
        record(tmp_path, Delta(f"{temperature} {seed}", (1,), "stop"), params=params)
    engine = replay(tmp_path)
    assert [text_of(engine, temperature=1.5, seed=2) for _ in range(2)] == ["1.5 2"] * 2
    assert [text_of(engine, temperature=0.5, seed=3) for _ in range(3)] == ["0.5 1", "0.5 2", "0.5 1"]
    engine.load(1, 100)
    assert [text_of(engine, temperature=0.1, seed=9) for _ in range(5)] == ["0.5 1", "0.5 2", "1.5 1", "1.5 2", "0.5 1"]


def test_a_recording_is_replayed_only_for_the_same_constraint(tmp_path: Path) -> None:
    digits, letters = Constraint("regex", "[0-9]+"), Constraint("regex", "[a-z]+")
    record(tmp_path, Delta("12", (1,), "stop"), params=PARAMS.model_copy(update={"constraint": digits}))
    record(tmp_path, Delta("Hello", (1,), "stop"))
    engine = replay(tmp_path)
    assert text_of(engine, constraint=digits) == "12"
    assert [text_of(engine) for _ in range(2)] == ["Hello", "Hello"]
    with pytest.raises(NoRecording):
        text_of(engine, constraint=letters)


def test_a_prompt_without_a_recording_is_an_error(tmp_path: Path) -> None:
    record(tmp_path, *DELTAS)
    with pytest.raises(NoRecording, match="There is no recording of this conversation"):
        text_of(replay(tmp_path), "首都は？ ")


async def test_cancelling_ends_a_wait_of_the_replay(tmp_path: Path) -> None:
    slow = VirtualTimer()

    def slowly(prompt: Prompt) -> Generator[Delta, None, None]:
        yield Delta("a", (1,))
        slow.sleep(3600)
        yield Delta("b", (2,), "stop")

    list(RecordingEngine(DeltaEngine(slowly), tmp_path, timer=slow).generate(prompt(), PARAMS))
    timer = ManualTimer()
    engine = replay(tmp_path, timer=timer)
    deltas: list[Delta] = []
    with ThreadPoolExecutor(1) as threads:
        stream = DeltaStream(threads, lambda: engine.generate(prompt(), PARAMS), deltas.append)
        await until(lambda: timer.sleeps == 1)
        stream.cancel()
        timer.allow(100_000)
        await stream.wait()
    assert (timer.sleeps, [delta.text for delta in deltas]) == (1, ["", "a"])


# Invalid files


def damage(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        file.write_text("".join(f"{line}\n" for line in change(file.read_text("utf-8").split("\n")[:-1])), "utf-8")

    return apply


@pytest.mark.parametrize(
    ("damage_file", "message"),
    [
        (damage(lambda lines: lines[:-1]), "is damaged: it does not contain the 7 deltas"),
        (damage(lambda lines: [*lines, lines[-1]]), "is damaged: it does not contain the 7 deltas"),
        (damage(lambda lines: [*lines[:-1], '{"seconds":9.0}']), "is damaged: it does not contain the 7 deltas"),
        (
            damage(lambda lines: [*lines[:2], lines[2][:9], *lines[3:]]),
            "damaged or not a recording: line 3: Invalid JSON",
        ),
        (damage(lambda lines: [lines[0], '{"seconds":-1}', *lines[2:]]), r"not a recording: line 2\.seconds: .* 0"),
        (damage(lambda lines: [lines[0].replace("recording 1", "recording 2"), *lines[1:]]), r"line 1\.format: "),
        (damage(lambda lines: ['{"role": "user"}']), "damaged or not a recording: line 1"),
        (lambda file: file.write_bytes(b""), "damaged or not a recording: line 1"),
        (lambda file: file.write_bytes(b"\xff\xfe\x00"), "damaged or not a recording: line 1"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "is damaged"),
    ],
)
def test_a_damaged_file_is_an_error_at_load_that_names_it(
    tmp_path: Path, damage_file: Callable[[Path], None], message: str
) -> None:
    record(tmp_path, *DELTAS)
    (file,) = tmp_path.iterdir()
    damage_file(file)
    with pytest.raises(ValueError, match=message) as error:
        replay(tmp_path)
    assert file.name in str(error.value)
    assert "\n" not in str(error.value)


def test_other_entries_of_the_folder_are_an_error_except_hidden_files(tmp_path: Path) -> None:
    record(tmp_path, *DELTAS)
    (tmp_path / ".gitkeep").write_text("")
    replay(tmp_path)
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match="notes is not a recording: it is not a file"):
        replay(tmp_path)


def test_a_folder_without_recordings_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There are no recordings in"):
        replay(tmp_path)
    with pytest.raises(ValueError, match=r"There is no folder .*missing"):
        replay(tmp_path / "missing")


@pytest.mark.parametrize("speed", [0, -1, float("nan"), float("inf"), "fast"])
def test_an_invalid_speed_is_a_value_error(tmp_path: Path, speed: Any) -> None:
    with pytest.raises(ValueError, match="speed: must be a number above 0, or None to replay without waits, not "):
        ReplayEngine(tmp_path, speed)
