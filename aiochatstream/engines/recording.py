"""Engines that record answers and replay them."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

from aiochatstream.engines import recording_files
from aiochatstream.engines.base import Delta, Engine, LabelledMetric, Prompt, StepKind
from aiochatstream.engines.recording_files import Recording
from aiochatstream.engines.timer import Timer
from aiochatstream.errors import ChatStreamError, InvalidValue, NoRecording
from aiochatstream.params import GenerationParams

logger = logging.getLogger(__name__)


class RecordingEngine(Engine):
    """Wraps an engine and writes each finished answer to a separate file in ``folder``.

    The files contain conversations; only their owner may read them. A cancelled answer is recorded as ``cancelled``, a
    failed one is not recorded. If a file cannot be written, the answer continues and the error is logged.

    :param engine: generates the answers.
    :param folder: created if missing.
    :param timer: for tests.

    Raises OSError if the folder is not writable, and TypeError for an asynchronous engine.
    """

    def __init__(self, engine: Engine, folder: str | os.PathLike[str], *, timer: Timer | None = None) -> None:
        if not isinstance(engine, Engine):
            raise TypeError(f"engine: must be an Engine that runs in threads, not {engine!r}.")
        self.folder = Path(folder)
        self.loads_slowly = engine.loads_slowly
        self._engine = engine
        self._timer = timer or Timer()
        self._failing = False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise OSError(f"Cannot record answers in {self.folder}: {error.strerror}.") from None

    @property
    def on_step(self) -> Callable[[StepKind, float], None]:
        """The callback of the wrapped engine."""
        return self._engine.on_step

    @on_step.setter
    def on_step(self, callback: Callable[[StepKind, float], None]) -> None:
        self._engine.on_step = callback

    def unavailable(self) -> ChatStreamError | None:
        return self._engine.unavailable()

    def load(self, slots: int, context_len: int | None) -> None:
        self._engine.load(slots, context_len)
        self.tokenizer, self.max_context_len = self._engine.tokenizer, self._engine.max_context_len
        self.vocab_size, self.response_template = self._engine.vocab_size, self._engine.response_template
        self.default_params, self.batch_obstacle = self._engine.default_params, self._engine.batch_obstacle
        self.kv_cache_tokens = self._engine.kv_cache_tokens

    def close(self) -> None:
        self._engine.close()

    def tokens_needed(self, prompt_tokens: int, max_new_tokens: int) -> int:
        return self._engine.tokens_needed(prompt_tokens, max_new_tokens)

    def share(self, token_ids: list[int]) -> None:
        self._engine.share(token_ids)

    def forget(self, owner: str) -> None:
        self._engine.forget(owner)

    def metrics(self) -> dict[str, float]:
        return self._engine.metrics()

    def labelled_metrics(self) -> list[LabelledMetric]:
        return self._engine.labelled_metrics()

    def gpu_memory(self) -> list[tuple[int, int, int]]:
        return self._engine.gpu_memory()

    def describe(self) -> dict[str, str]:
        return self._engine.describe()

    def check(self, params: GenerationParams) -> None:
        """Check as the wrapped engine, and reject logprobs, which the files do not contain."""
        if params.logprobs is not None:
            raise InvalidValue("logprobs: not supported while answers are recorded.")
        self._engine.check(params)

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        path = self.folder / recording_files.new_file_name()
        start = self._timer.now()
        recording = Recording(prompt.messages, prompt.token_ids, params, [])
        try:
            with closing(self._engine.generate(prompt, params)) as answer:
                for delta in answer:
                    if delta != Delta():
                        recording.steps.append((self._timer.now() - start, delta))
                    yield delta
        except GeneratorExit:
            self._save(recording, path)
            raise
        self._save(recording, path)

    def _save(self, recording: Recording, path: Path) -> None:
        try:
            recording_files.write(recording, path)
        except Exception as error:  # noqa: BLE001 - the answer itself is complete
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__  # without texts
            if not self._failing:  # log once until a file is written again
                logger.error("Cannot record answers in %s: %s", self.folder, reason)
            self._failing = True
        else:
            self._failing = False


class ReplayEngine(Engine):
    """Replays the recordings of a :class:`RecordingEngine`: the same deltas with the same timing.

    A recording matches a prompt with the same messages (the whole conversation) and the same constraint. Recordings
    with equal parameters are preferred, then those that differ only in the seed, then all others; among these the least
    played and then the oldest. A recording is always replayed completely, regardless of ``max_new_tokens`` and stop
    strings. A prompt without a recording fails with the error ``no_recording``.

    :param folder: contains only recordings (and hidden files). It is read when the app starts, which raises ValueError
        for a file that is damaged or not a recording.
    :param speed: 2 replays twice as fast as recorded; None does not wait.
    :param timer: for tests.

    Raises ValueError unless the speed is above 0.
    """

    def __init__(
        self, folder: str | os.PathLike[str], speed: float | None = 1.0, *, timer: Timer | None = None
    ) -> None:
        if speed is not None and not (isinstance(speed, int | float) and 0 < speed < math.inf):
            raise ValueError(f"speed: must be a number above 0, or None to replay without waits, not {speed!r}.")
        self.folder = Path(folder)
        self._speed = math.inf if speed is None else speed
        self._timer = timer or Timer()
        self._lock = threading.Lock()
        self._recordings: dict[str, list[Recording]] = {}
        self._play_counts: Counter[int] = Counter()

    def load(self, slots: int, context_len: int | None) -> None:
        self._recordings = {}
        for recording in recording_files.read_all(self.folder):
            self._recordings.setdefault(_key(recording.messages), []).append(recording)
        self._play_counts.clear()

    def describe(self) -> dict[str, str]:
        return {"model": f"none; {sum(map(len, self._recordings.values()))} recorded answers in {self.folder}"}

    def check(self, params: GenerationParams) -> None:
        """Reject logprobs, which the files do not contain."""
        if params.logprobs is not None:
            raise InvalidValue("logprobs: not supported by recorded answers.")

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        start = self._timer.now()
        recording = self._choose(prompt, params)
        yield Delta(prompt_tokens=len(recording.token_ids))
        for seconds, delta in recording.steps:
            yield from self._timer.wait_until(start + seconds / self._speed)
            yield delta
        if recording.finish_reason == "cancelled":
            yield Delta(finish_reason="cancelled")

    def _choose(self, prompt: Prompt, params: GenerationParams) -> Recording:
        """Return the best match. Raise NoRecording if there is none."""
        same_messages = self._recordings.get(_key(prompt.messages), [])
        matches = [recording for recording in same_messages if recording.params.constraint == params.constraint]
        if not matches:
            raise NoRecording("There is no recording of this conversation.")

        def rank(recording: Recording) -> tuple[int, int]:
            return _distance(recording.params, params), self._play_counts[id(recording)]

        with self._lock:
            best = min(matches, key=rank)
            self._play_counts[id(best)] += 1
        return best


def _key(messages: list[dict[str, str]]) -> str:
    return json.dumps(messages, sort_keys=True)


def _distance(first: GenerationParams, second: GenerationParams) -> int:
    """Return 0 for equal parameters, 1 if only the seed differs (most seeds are random), else 2."""
    if first == second:
        return 0
    return 1 if first.model_copy(update={"seed": second.seed}) == second else 2
