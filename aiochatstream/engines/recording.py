"""Record the answers of an engine, and play them back without it."""

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
from aiochatstream.engines.base import Delta, Engine, Prompt, StepKind
from aiochatstream.engines.recording_files import Recording
from aiochatstream.engines.timer import Timer
from aiochatstream.errors import InvalidValue, NoRecording
from aiochatstream.params import GenerationParams

logger = logging.getLogger(__name__)


class RecordingEngine(Engine):
    """Another engine, each answer of which goes to a file of its own in ``folder`` when it is over.

    The files hold what people said; only their owner may read them. An answer that was broken off is kept as
    ``cancelled``, one that failed is not kept. Where a file cannot be written, the log says so and the answer goes on.

    :param engine: makes the answers.
    :param folder: made where it is missing.
    :param timer: for tests.

    Raises OSError where the folder cannot be written to.
    """

    def __init__(self, engine: Engine, folder: str | os.PathLike[str], *, timer: Timer | None = None) -> None:
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
            raise OSError(f"Answers cannot be recorded in {self.folder}: {error.strerror}.") from None

    @property
    def on_step(self) -> Callable[[StepKind, float], None]:
        """The engine's own."""
        return self._engine.on_step

    @on_step.setter
    def on_step(self, told: Callable[[StepKind, float], None]) -> None:
        self._engine.on_step = told

    @property
    def stopped(self) -> bool:
        return self._engine.stopped

    def load(self, slots: int, context_len: int) -> None:
        self._engine.load(slots, context_len)
        self.tokenizer, self.max_context_len = self._engine.tokenizer, self._engine.max_context_len
        self.vocabulary = self._engine.vocabulary

    def close(self) -> None:
        self._engine.close()

    def share(self, token_ids: list[int]) -> None:
        self._engine.share(token_ids)

    def forget(self, owner: str) -> None:
        self._engine.forget(owner)

    def figures(self) -> dict[str, float]:
        return self._engine.figures()

    def gpu_memory(self) -> list[tuple[int, int, int]]:
        return self._engine.gpu_memory()

    def describe(self) -> dict[str, str]:
        return self._engine.describe()

    def check(self, params: GenerationParams) -> None:
        """What the engine refuses, and logprobs, which the files do not hold."""
        if params.logprobs is not None:
            raise InvalidValue("logprobs: are not told where answers are recorded.")
        self._engine.check(params)

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        path = self.folder / recording_files.new_name()
        begun = self._timer.now()
        recording = Recording(prompt.messages, prompt.token_ids, params, [])
        try:
            with closing(self._engine.generate(prompt, params)) as answer:
                for delta in answer:
                    if delta != Delta():
                        recording.steps.append((self._timer.now() - begun, delta))
                    yield delta
        except GeneratorExit:
            self._keep(recording, path)
            raise
        self._keep(recording, path)

    def _keep(self, recording: Recording, path: Path) -> None:
        try:
            recording_files.write(recording, path)
        except Exception as error:  # noqa: BLE001 - the answer itself is well
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__  # not what people said
            if not self._failing:  # once, until it works again
                logger.error("Answers are not recorded in %s: %s", self.folder, reason)
            self._failing = True
        else:
            self._failing = False


class ReplayEngine(Engine):
    """Answers with the recordings of a :class:`RecordingEngine`: the same deltas, in the same time.

    A prompt is answered with a recording of the same messages, the whole conversation that is. Of several, those of the
    same parameters come first, then those where only the seed is another, then the others; among equals the oldest of
    those that were played least. What was recorded is played whole, whatever ``max_new_tokens`` and the stop strings
    say; only a constraint must be the same. A prompt without a recording is answered with the error ``no_recording``.

    :param folder: of nothing but recordings (and hidden files). It is read when the app starts; ValueError then names
        what is damaged or no recording.
    :param speed: 2 is twice as quick as recorded; None does not wait at all.
    :param timer: for tests.

    Raises ValueError for a speed that is not above 0.
    """

    def __init__(
        self, folder: str | os.PathLike[str], speed: float | None = 1.0, *, timer: Timer | None = None
    ) -> None:
        if speed is not None and not (isinstance(speed, int | float) and 0 < speed < math.inf):
            raise ValueError(f"speed: must be a number above 0, or None for no waits, not {speed!r}.")
        self.folder = Path(folder)
        self._speed = math.inf if speed is None else speed
        self._timer = timer or Timer()
        self._lock = threading.Lock()
        self._recordings: dict[str, list[Recording]] = {}
        self._played: Counter[int] = Counter()

    def load(self, slots: int, context_len: int) -> None:
        self._recordings = {}
        for recording in recording_files.read_all(self.folder):
            self._recordings.setdefault(_key(recording.messages), []).append(recording)
        self._played.clear()

    def describe(self) -> dict[str, str]:
        return {"model": f"none; {sum(map(len, self._recordings.values()))} recorded answers of {self.folder}"}

    def check(self, params: GenerationParams) -> None:
        """Refuses logprobs, which the files do not hold."""
        if params.logprobs is not None:
            raise InvalidValue("logprobs: are not in recorded answers.")

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        begun = self._timer.now()
        recording = self._choose(prompt, params)
        yield Delta(prompt_tokens=len(recording.token_ids))
        for seconds, delta in recording.steps:
            yield from self._timer.until(begun + seconds / self._speed)
            yield delta
        if recording.finish_reason == "cancelled":
            yield Delta(finish_reason="cancelled")

    def _choose(self, prompt: Prompt, params: GenerationParams) -> Recording:
        """The recording to play now. Raises NoRecording."""
        same = self._recordings.get(_key(prompt.messages), [])
        found = [one for one in same if one.params.constraint == params.constraint]
        if not found:
            raise NoRecording("There is no recording of this prompt: the same messages from the conversation's start.")
        with self._lock:
            chosen = min(found, key=lambda one: (_distance(one.params, params), self._played[id(one)]))
            self._played[id(chosen)] += 1
        return chosen


def _key(messages: list[dict[str, str]]) -> str:
    return json.dumps(messages, sort_keys=True)


def _distance(recorded: GenerationParams, asked: GenerationParams) -> int:
    """0 for the same parameters, 1 where only the seed is another (most are drawn at random), 2 for others."""
    if recorded == asked:
        return 0
    return 1 if recorded.model_copy(update={"seed": asked.seed}) == asked else 2
