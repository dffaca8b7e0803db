"""Answers of a given form: the tokens that may come next, and the grammars that determine them."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from aiochatstream.constraint import Constraint, ConstraintKind
from aiochatstream.engines.transformers.device import tensor
from aiochatstream.engines.transformers.grammar_process import (
    Bounds,
    GrammarProcess,
    ProcessEnded,
    Rejected,
    Tokenizer,
)
from aiochatstream.errors import InvalidValue
from aiochatstream.extras import install_command

if TYPE_CHECKING:
    from aiochatstream.engines.transformers.sampling import Sampler

logger = logging.getLogger(__name__)

WORD = 32
"""Tokens per number of a mask."""

MAX_BYTES = 1 << 19
"""Size of a schema or grammar."""

TRIAL = Bounds(stack_bytes=2 << 20, memory_bytes=256 << 20)
"""Bounds of the process that compiles an unknown grammar for the first time. It is thrown away."""

TRIAL_CPU_SECONDS = 2.0
"""Seconds of processor time of the trial."""

SERVING = Bounds(stack_bytes=16 << 20, memory_bytes=2 << 30)
"""Bounds of the process that compiles grammars that have passed their trial, and computes masks. They are wider than
the trial's, so that what has passed it does no harm here."""

COMPILE_CPU_SECONDS = 8.0
"""Seconds of processor time to compile a grammar in the serving process; other answers' masks count, too."""

MASK_CPU_SECONDS = 2.0
"""Seconds of processor time for a mask, which takes milliseconds within the limits of llguidance."""

KNOWN_OUTCOMES = 1024
"""Number of remembered outcomes of trials, the most recently used ones."""

MAX_REASON = 300
"""Maximum length in characters of a reason that llguidance gives."""

HIDDEN_STATE = "<non-verbose/>"
"""Stands in a reason for the parser's state."""

NAMES: dict[ConstraintKind, str] = {
    "json_object": "JSON",
    "json_schema": "this JSON schema",
    "regex": "this regular expression",
    "lark": "this grammar",
}


class Matcher:
    """The place of one answer in its grammar. Masks are computed while the model computes."""

    def __init__(self, grammars: Grammars, constraint: Constraint, number: int) -> None:
        self._grammars, self._constraint, self._number = grammars, constraint, number
        self._tokens: list[int] = []
        self._restarted_at = -1
        self._start()

    @property
    def mask(self) -> NDArray[np.int32]:
        """A bit for each token that may come next, the first token in the lowest.

        Raises :class:`~aiochatstream.errors.InvalidValue` if the grammar has become too complex.
        """
        try:
            return np.frombuffer(self._reply.result(), np.int32)
        except Rejected as error:
            raise InvalidValue(f"constraint: cannot be followed to its end: {_one_line(str(error))}.") from None
        except ProcessEnded:
            if len(self._tokens) == self._restarted_at:  # twice at the same place, so this grammar is the cause
                raise InvalidValue("constraint: cannot be followed to its end: it has become too complex.") from None
        self._restarted_at = len(self._tokens)
        self._start()
        return self.mask

    def allows(self, token: int) -> bool:
        """Return whether ``token`` may come next."""
        return bool(self.mask[token // WORD] >> token % WORD & 1)

    def advance(self, token: int) -> None:
        """Append ``token``, which is allowed."""
        self._tokens.append(token)
        self._reply = self._process.request("advance", self._number, token, cpu_seconds=MASK_CPU_SECONDS)

    def _start(self) -> None:
        self._process = self._grammars.process()
        arguments = (self._number, self._constraint.kind, self._constraint.text, self._tokens)
        self._reply = self._process.request("start", *arguments, cpu_seconds=COMPILE_CPU_SECONDS)
        weakref.finalize(self, self._process.finish, self._number).atexit = False


class Grammars:
    """The constraints of one engine. They are compiled and followed in a process of their own.

    Without llguidance, or for a tokenizer that llguidance does not know, :meth:`check` raises InvalidValue.

    :param vocabulary: number of the model's token ids, if known.
    :param eos_ids: tokens that end a complete answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int | None, eos_ids: Collection[int]) -> None:
        self._missing = ""
        self._tokenizer = Tokenizer()
        if importlib.util.find_spec("llguidance") is None:
            self._missing = f"answers of a given form require the extra: {install_command('constrained')}."
        else:
            try:
                self._tokenizer = _serialised(tokenizer, vocabulary or 0, eos_ids)
            except ValueError as error:
                self._missing = f"not possible with this model's tokenizer ({error})."
        self._numbers = itertools.count()
        self._outcomes: OrderedDict[bytes, str] = OrderedDict()
        self._process: GrammarProcess | None = None
        self._lock = threading.Lock()
        self._trial_lock = threading.Lock()
        self._process_lock = threading.Lock()

    def matcher(self, constraint: Constraint) -> Matcher:
        """Return the state of a new answer. Blocks and raises as :meth:`check`."""
        self.check(constraint)
        if outcome := self._compile(constraint):
            raise InvalidValue(outcome)
        return Matcher(self, constraint, next(self._numbers))

    def knows(self, constraint: Constraint) -> bool:
        """Return whether :meth:`check` needs no trial, because it knows the outcome of an earlier one."""
        return bool(self._missing) or self._outcome(_digest(constraint)) is not None

    def check(self, constraint: Constraint) -> None:
        """Compile the grammar if it is unknown, which may take seconds. Blocks.

        Raises :class:`~aiochatstream.errors.InvalidValue` for one that cannot be followed within the bounds.
        """
        if self._missing:
            raise InvalidValue(f"constraint: {self._missing}")
        size = len(constraint.text.encode(errors="surrogatepass"))
        if size > MAX_BYTES:
            raise InvalidValue(f"constraint: {NAMES[constraint.kind]} must have at most {MAX_BYTES} bytes, not {size}.")
        digest = _digest(constraint)
        outcome = self._outcome(digest)
        if outcome is None:
            with self._trial_lock:  # one trial at a time, also because the one before may be of the same grammar
                outcome = self._outcome(digest)
                if outcome is None:
                    self.process()  # starts concurrently
                    outcome = self._remember(digest, _try(constraint) or self._compile(constraint))
        if outcome:
            raise InvalidValue(outcome)

    def process(self) -> GrammarProcess:
        """Return the serving process; a new one if it has ended."""
        with self._process_lock:
            if self._process is not None and self._process.ended:
                logger.warning(
                    "The process that follows grammars has crashed or exceeded its bounds; it is started again."
                )
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
        """Compile the grammar in the serving process, unless that has it, and return the outcome. Blocks.

        Raises :class:`~aiochatstream.errors.InvalidValue` if the process ends, maybe by another grammar.
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
            if len(self._outcomes) > KNOWN_OUTCOMES:
                self._outcomes.popitem(last=False)
        return outcome


@torch.inference_mode()
def constrained(logits: torch.Tensor, samplers: Sequence[Sampler], plain: torch.Tensor) -> torch.Tensor:
    """``logits`` [rows, vocabulary] in float32, -inf where a row's constraint allows no token; not changed in place.

    :param plain: the logits as the model gave them, for rows where penalties have left none of what is allowed.
    """
    matchers = {row: sampler.matcher for row, sampler in enumerate(samplers) if sampler.matcher is not None}
    if not matchers:
        return logits
    masks = np.stack([matcher.mask for matcher in matchers.values()]).view(np.uint8)
    bits = np.unpackbits(masks, axis=1, count=logits.shape[-1], bitorder="little")
    refused = torch.from_numpy(bits == 0).to(logits.device)
    rows = tensor(list(matchers), logits.device)
    kept = logits.index_select(0, rows).masked_fill(refused, -torch.inf)
    none_left = kept.amax(dim=-1, keepdim=True) == -torch.inf
    kept = torch.where(none_left, plain.index_select(0, rows).float().masked_fill(refused, -torch.inf), kept)
    return logits.index_copy(0, rows, kept)


def _serialised(tokenizer: Any, vocabulary: int, eos_ids: Collection[int]) -> Tokenizer:
    """Return the tokenizer as llguidance reads it. Raises ValueError for one that it does not know."""
    if not eos_ids:
        raise ValueError("the model knows no end-of-sequence token")
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError("only fast tokenizers are supported")
    backend = copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return Tokenizer(backend.to_str(), max(vocabulary, len(tokenizer)), tuple(sorted(eos_ids)))


def _try(constraint: Constraint) -> str:
    """Compile a grammar in a process that is thrown away, and return the outcome."""
    trial = GrammarProcess(Tokenizer(), TRIAL)
    try:
        return _outcome_of(
            constraint, trial.request("compile", constraint.kind, constraint.text, cpu_seconds=TRIAL_CPU_SECONDS)
        )
    finally:
        trial.close()


def _outcome_of(constraint: Constraint, request: Future[bytes]) -> str:
    """Wait for a grammar to be compiled and return what is wrong with it; empty if it can be followed."""
    try:
        request.result()
    except Rejected as error:
        return f"constraint: {NAMES[constraint.kind]} cannot be followed: {_one_line(str(error))}."
    except ProcessEnded:
        return (
            f"constraint: {NAMES[constraint.kind]} is too complex; to compile it must take at most "
            f"{TRIAL_CPU_SECONDS:g} s of processor time, {TRIAL.memory_bytes >> 20} MiB of memory and "
            f"{TRIAL.stack_bytes >> 20} MiB of stack."
        )
    return ""


def _digest(constraint: Constraint) -> bytes:
    return hashlib.sha256(f"{constraint.kind} {constraint.text}".encode(errors="surrogatepass")).digest()


def _one_line(reason: str) -> str:
    """Return what llguidance says in one line, without a full stop."""
    return " ".join(reason.replace(HIDDEN_STATE, "").split())[:MAX_REASON].removesuffix(".")
