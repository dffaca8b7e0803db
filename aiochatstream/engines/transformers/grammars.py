"""Grammars of constrained answers: their compilation, and masks of the tokens that may follow."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiochatstream.constraint import Constraint, ConstraintKind
from aiochatstream.engines.transformers.grammar_process import (
    Bounds,
    GrammarProcess,
    ProcessEnded,
    Rejected,
    RequestName,
    SerialisedTokenizer,
)
from aiochatstream.errors import InvalidValue
from aiochatstream.extras import install_command

logger = logging.getLogger(__name__)

MASK_BITS = 32
"""Tokens per integer of a mask."""

MAX_BYTES = 1 << 19
"""Maximum size of a schema or grammar."""

TRIAL = Bounds(stack_bytes=2 << 20, memory_bytes=256 << 20)
"""Bounds of the temporary process that compiles an unknown grammar for the first time."""

TRIAL_CPU_SECONDS = 2.0
"""Processor time of the trial, in seconds."""

SERVING = Bounds(stack_bytes=16 << 20, memory_bytes=2 << 30)
"""Bounds of the process that compiles grammars that have passed their trial, and computes masks. They are wider than
the trial's, so that a grammar that has passed it does not exceed them."""

COMPILE_CPU_SECONDS = 8.0
"""Processor time to compile a grammar in the serving process, in seconds; includes masks of other answers."""

MASK_CPU_SECONDS = 2.0
"""Processor time for a mask, in seconds. Within the limits of llguidance a mask takes milliseconds."""

CACHED_OUTCOMES = 1024
"""Number of trial outcomes in the cache; the least recently used is dropped first."""

MAX_REASON = 300
"""Maximum length in characters of a reason that llguidance gives."""

HIDDEN_STATE = "<non-verbose/>"
"""llguidance's placeholder for the parser's state in a reason."""

NAMES: dict[ConstraintKind, str] = {
    "json_object": "JSON",
    "json_schema": "this JSON schema",
    "regex": "this regular expression",
    "lark": "this grammar",
}


class Matcher:
    """The state of one answer in its grammar. Masks are computed concurrently with the model."""

    forced_token: int | None = None
    """None: a mask that allows a single token excludes all others."""

    def __init__(self, grammars: Grammars, constraint: Constraint, number: int) -> None:
        self._grammars, self._constraint, self._number = grammars, constraint, number
        self._tokens: list[int] = []
        self._restarted_at = -1
        self._on_ready: Callable[[], None] = lambda: None
        self._start()

    @property
    def ready(self) -> bool:
        """True if :attr:`mask` does not wait. If the process has ended, another one starts to compute the mask."""
        has_ended = self._reply.done() and isinstance(self._reply.exception(), ProcessEnded)
        if has_ended and len(self._tokens) != self._restarted_at:
            self._restarted_at = len(self._tokens)
            self._start()
        return self._reply.done()

    def on_ready(self, function: Callable[[], None]) -> None:
        """Call ``function`` as soon as a mask is ready, the current one and all later ones, in any thread."""
        self._on_ready = function
        self._reply.add_done_callback(lambda _: function())

    @property
    def mask(self) -> NDArray[np.int32]:
        """Mask of the tokens that may follow: a bit per token, the first token in the lowest bit. Waits for it.

        Raise :class:`~aiochatstream.errors.InvalidValue` if the grammar has become too complex.
        """
        while not self.ready:
            wait([self._reply])
        try:
            return np.frombuffer(self._reply.result(), np.int32)
        except Rejected as error:
            raise InvalidValue(f"constraint: the answer cannot continue: {_one_line(str(error))}.") from None
        except ProcessEnded:  # twice at the same token, so this grammar is the cause
            raise InvalidValue("constraint: the answer cannot continue: the grammar is too complex.") from None

    def allows(self, token: int) -> bool:
        """Return True if ``token`` may follow."""
        return bool(self.mask[token // MASK_BITS] >> token % MASK_BITS & 1)

    def advance(self, token: int) -> None:
        """Append ``token``, which must be allowed."""
        self._tokens.append(token)
        self._request("advance", self._number, token, cpu_seconds=MASK_CPU_SECONDS)

    def _start(self) -> None:
        self._process = self._grammars.process()
        arguments = (self._number, self._constraint.kind, self._constraint.text, list(self._tokens))
        self._request("start", *arguments, cpu_seconds=COMPILE_CPU_SECONDS)
        weakref.finalize(self, self._process.finish, self._number).atexit = False

    def _request(self, name: RequestName, *arguments: object, cpu_seconds: float) -> None:
        self._reply = self._process.request(name, *arguments, cpu_seconds=cpu_seconds)
        function = self._on_ready  # without a reference to the matcher, whose end frees its state in the process
        self._reply.add_done_callback(lambda _: function())


class Grammars:
    """The grammars of one engine, compiled and matched in a separate process.

    Without llguidance, or for a tokenizer that llguidance does not support, :meth:`check` raises InvalidValue.

    :param vocab_size: number of the model's token ids, if known.
    :param eos_ids: tokens that end a complete answer.
    """

    def __init__(self, tokenizer: Any, vocab_size: int | None, eos_ids: Collection[int]) -> None:
        self._unsupported = ""
        self._tokenizer = SerialisedTokenizer()
        if importlib.util.find_spec("llguidance") is None:
            self._unsupported = f"requires the extra: {install_command('constrained')}."
        else:
            try:
                self._tokenizer = _serialise(tokenizer, vocab_size or 0, eos_ids)
            except ValueError as error:
                self._unsupported = f"not supported with this model's tokenizer ({error})."
        self._numbers = itertools.count()
        self._outcomes: OrderedDict[bytes, str] = OrderedDict()
        self._process: GrammarProcess | None = None
        self._lock = threading.Lock()
        self._trial_lock = threading.Lock()
        self._process_lock = threading.Lock()

    def matcher(self, constraint: Constraint) -> Matcher:
        """Return the state of a new answer. Blocks like :meth:`check`, and raises its errors."""
        self.check(constraint)
        if outcome := self._compile(constraint):
            raise InvalidValue(outcome)
        return Matcher(self, constraint, next(self._numbers))

    def knows(self, constraint: Constraint) -> bool:
        """Return True if :meth:`check` needs no trial because the outcome is cached."""
        return bool(self._unsupported) or self._outcome(_digest(constraint)) is not None

    def check(self, constraint: Constraint) -> None:
        """Compile the grammar unless its outcome is cached. Blocks, possibly for seconds.

        Raise :class:`~aiochatstream.errors.InvalidValue` if the grammar is invalid or exceeds the bounds.
        """
        if self._unsupported:
            raise InvalidValue(f"constraint: {self._unsupported}")
        size = len(constraint.text.encode(errors="surrogatepass"))
        if size > MAX_BYTES:
            raise InvalidValue(f"constraint: {NAMES[constraint.kind]} must have at most {MAX_BYTES} bytes, not {size}.")
        digest = _digest(constraint)
        outcome = self._outcome(digest)
        if outcome is None:
            with self._trial_lock:  # one trial at a time; the previous one may have been of the same grammar
                outcome = self._outcome(digest)
                if outcome is None:
                    self.process()  # starts concurrently with the trial
                    outcome = self._remember(digest, _try(constraint) or self._compile(constraint))
        if outcome:
            raise InvalidValue(outcome)

    def process(self) -> GrammarProcess:
        """Return the serving process. Starts a new one if it has ended."""
        with self._process_lock:
            if self._process is not None and self._process.ended:
                logger.warning("The grammar process crashed or exceeded its bounds; restarting it.")
                self._process = None
            if self._process is None:
                self._process = GrammarProcess(self._tokenizer, SERVING)
            return self._process

    def close(self) -> None:
        """End the process."""
        with self._process_lock:
            if self._process is not None:
                self._process.close()

    def _compile(self, constraint: Constraint) -> str:
        """Compile the grammar in the serving process, unless cached there, and return the outcome. Blocks.

        Raise :class:`~aiochatstream.errors.InvalidValue` if the process ends, possibly because of another grammar.
        """
        arguments = (constraint.kind, constraint.text)
        compiling = self.process().request("compile", *arguments, cpu_seconds=COMPILE_CPU_SECONDS)
        outcome = _outcome_of(constraint, compiling)
        if isinstance(compiling.exception(), ProcessEnded):
            raise InvalidValue(outcome)
        return outcome

    def _outcome(self, digest: bytes) -> str | None:
        with self._lock:
            outcome = self._outcomes.get(digest)
            if outcome is not None:
                self._outcomes.move_to_end(digest)
            return outcome

    def _remember(self, digest: bytes, outcome: str) -> str:
        with self._lock:
            self._outcomes[digest] = outcome
            if len(self._outcomes) > CACHED_OUTCOMES:
                self._outcomes.popitem(last=False)
        return outcome


def _serialise(tokenizer: Any, vocab_size: int, eos_ids: Collection[int]) -> SerialisedTokenizer:
    """Return the tokenizer in llguidance's format. Raise ValueError if llguidance does not support it."""
    if not eos_ids:
        raise ValueError("the model has no end-of-sequence token")
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError("only fast tokenizers are supported")
    backend = copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return SerialisedTokenizer(backend.to_str(), max(vocab_size, len(tokenizer)), tuple(sorted(eos_ids)))


def _try(constraint: Constraint) -> str:
    """Compile a grammar in a temporary process and return the outcome."""
    trial = GrammarProcess(SerialisedTokenizer(), TRIAL)
    try:
        return _outcome_of(
            constraint, trial.request("compile", constraint.kind, constraint.text, cpu_seconds=TRIAL_CPU_SECONDS)
        )
    finally:
        trial.close()


def _outcome_of(constraint: Constraint, request: Future[bytes]) -> str:
    """Wait until a grammar is compiled and return the error; empty if there is none."""
    try:
        request.result()
    except Rejected as error:
        return f"constraint: {NAMES[constraint.kind]} is not supported: {_one_line(str(error))}."
    except ProcessEnded:
        return (
            f"constraint: {NAMES[constraint.kind]} is too complex: its compilation must take at most "
            f"{TRIAL_CPU_SECONDS:g} s of processor time, {TRIAL.memory_bytes >> 20} MiB of memory and "
            f"{TRIAL.stack_bytes >> 20} MiB of stack."
        )
    return ""


def _digest(constraint: Constraint) -> bytes:
    return hashlib.sha256(f"{constraint.kind} {constraint.text}".encode(errors="surrogatepass")).digest()


def _one_line(reason: str) -> str:
    """Return llguidance's ``reason`` on one line, without a full stop."""
    return " ".join(reason.replace(HIDDEN_STATE, "").split())[:MAX_REASON].removesuffix(".")
