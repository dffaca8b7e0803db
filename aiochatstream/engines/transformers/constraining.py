"""Answers of a given form: which tokens may come next, by llguidance (https://github.com/guidance-ai/llguidance)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from aiochatstream.constraint import Constraint, ConstraintKind
from aiochatstream.engines.transformers.grammar_trial import LEXER_FUEL, ends
from aiochatstream.engines.transformers.transfer import tensor
from aiochatstream.errors import InvalidValue
from aiochatstream.threads import DaemonExecutor

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from aiochatstream.engines.transformers.sampling import Sampler

WORD = 32
"""Tokens a number of a mask."""

KEPT_GRAMMARS = 16
"""That were used last. Most clients send the same one again and again."""

LONGEST_REASON = 300
"""Characters of what llguidance says of a grammar."""

NOT_TOLD = "<non-verbose/>"
"""Stands in it for the parser's state."""

CALLED: dict[ConstraintKind, str] = {
    "json_object": "JSON",
    "json_schema": "this JSON schema",
    "regex": "this regular expression",
    "lark": "this grammar",
}


class Matcher:
    """Where one answer stands in its grammar. What may come next is found out while the model computes."""

    def __init__(self, matcher: LLMatcher, mask_words: int, threads: Executor) -> None:
        self._matcher, self._mask_words, self._threads = matcher, mask_words, threads
        self._mask = threads.submit(self._compute)

    @property
    def mask(self) -> NDArray[np.int32]:
        """A bit for each token that may come next, the first token in the lowest.

        Raises :class:`~aiochatstream.errors.InvalidValue` where the grammar has become too complex.
        """
        return self._mask.result()

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next."""
        return bool(self.mask[token // WORD] >> token % WORD & 1)

    def advance(self, token: int) -> None:
        """``token``, which is allowed, came next."""
        self._mask = self._threads.submit(self._advance, token)

    def _advance(self, token: int) -> NDArray[np.int32]:
        self._matcher.consume_token(token)
        return self._compute()

    def _compute(self) -> NDArray[np.int32]:
        mask = _mask_of(self._matcher, self._mask_words)
        if reason := self._matcher.get_error():
            raise InvalidValue(f"constraint: cannot be followed to its end: {_told(reason)}.")
        return mask


class Grammars:
    """The constraints of one engine, compiled.

    What it needs of the tokenizer is made here, where the model is loaded and not at the first constraint: it holds
    Python's lock for a third of a second, or longer. Without llguidance, or for a tokenizer that it does not know,
    :meth:`compile` says so.

    :param vocabulary: how many token ids the model has, where that is known.
    :param eos_ids: what an answer that is complete ends with.
    """

    def __init__(self, tokenizer: Any, vocabulary: int | None, eos_ids: Collection[int]) -> None:
        self._missing = ""
        self._tokenizer: LLTokenizer | None = None
        try:
            self._tokenizer = _tokenizer_of(tokenizer, vocabulary or 0, eos_ids)
            self._mask_words = -(-self._tokenizer.vocab_size // WORD)
        except ImportError:
            self._missing = "answers of a given form take the extra: pip install 'aiochatstream[constrained]'."
        except Exception as error:  # noqa: BLE001 - llguidance says ValueError, and sometimes others
            self._missing = f"not possible with this model's tokenizer ({error})."
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._threads = DaemonExecutor(1, "aiochatstream-constrain")

    def matcher(self, constraint: Constraint) -> Matcher:
        """For a new answer. Raises as :meth:`compile`."""
        return Matcher(self.compile(constraint).deep_copy(), self._mask_words, self._threads)

    def compile(self, constraint: Constraint) -> LLMatcher:
        """The grammar, at its beginning; not to be moved. One that is new takes a moment, a huge one seconds.

        Raises :class:`~aiochatstream.errors.InvalidValue` for what cannot be followed.
        """
        if self._tokenizer is None:
            raise InvalidValue(f"constraint: {self._missing}")
        with self._lock:
            found = self._compiled.get(constraint)
            if found is not None:
                self._compiled.move_to_end(constraint)
                return found
        compiled = _compiled(self._tokenizer, self._mask_words, constraint)
        with self._lock:
            self._compiled[constraint] = compiled
            if len(self._compiled) > KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        return compiled

    def close(self) -> None:
        """End the thread."""
        self._threads.shutdown(wait=False)


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


def _tokenizer_of(tokenizer: Any, vocabulary: int, eos_ids: Collection[int]) -> LLTokenizer:
    """Raises ImportError where llguidance is not installed, and ValueError for a tokenizer that it does not know."""
    from llguidance.hf import from_tokenizer

    if not eos_ids:
        raise ValueError("the model knows no end-of-sequence token")
    return from_tokenizer(tokenizer, n_vocab=max(vocabulary, len(tokenizer)), eos_token=sorted(eos_ids))


def _compiled(tokenizer: LLTokenizer, mask_words: int, constraint: Constraint) -> LLMatcher:
    """Raises InvalidValue."""
    from llguidance import LLMatcher, LLParserLimits

    text = '{"type": "object"}' if constraint.kind == "json_object" else constraint.text
    try:
        if constraint.kind == "regex":
            grammar = LLMatcher.grammar_from_regex(text)
        elif constraint.kind == "lark":
            grammar = LLMatcher.grammar_from_lark(text)
        else:
            # small models, once in white space, may never leave it
            grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
        if constraint.kind != "json_object" and not ends(grammar):
            raise InvalidValue(f"constraint: {CALLED[constraint.kind]} takes too long to work out.")
        limits = LLParserLimits(initial_lexer_fuel=LEXER_FUEL, verbose_errors=False)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        _mask_of(matcher, mask_words)  # of a huge grammar, the first takes long: here, nobody else waits for it
        reason = matcher.get_error()
    except ValueError as error:
        reason = str(error)
    if reason:
        raise InvalidValue(f"constraint: {CALLED[constraint.kind]} cannot be followed: {_told(reason)}.")
    return matcher


def _mask_of(matcher: LLMatcher, words: int) -> NDArray[np.int32]:
    mask = np.zeros(words, np.int32)
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    return mask


def _told(reason: str) -> str:
    """What llguidance says, in one line."""
    return " ".join(reason.replace(NOT_TOLD, "").split())[:LONGEST_REASON].removesuffix(".")
