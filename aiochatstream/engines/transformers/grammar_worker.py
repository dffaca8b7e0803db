"""The program that compiles grammars and computes masks of allowed tokens with llguidance
(https://github.com/guidance-ai/llguidance). It runs in a separate process, see ``grammar_process.py``.

It does not import this package, so that it starts quickly. Messages on stdin and stdout are 4 bytes of length
(big-endian) and a body. The first one configures the worker; all others are requests::

    {"tokenizer": "byte" or JSON, "vocab_size": int, "eos_ids": [int], "json_options": {...},
     "stack_bytes": int, "memory_bytes": int}

    [number, [finished answer], "compile", kind, text]              reply: empty
    [number, [finished answer], "start", answer, kind, text, [id]]  reply: mask that follows these tokens
    [number, [finished answer], "advance", answer, token]           reply: mask that follows this token also

A reply is the number of its request (4 bytes), then ``+`` and bytes, or ``-`` and the reason of a rejection. A mask has
a bit per token, the first token in the lowest bit.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

COMPILED_GRAMMARS = 16
"""Number of compiled grammars in the cache; the least recently used is dropped first."""

LIMITS = LLParserLimits(initial_lexer_fuel=300_000, max_lexer_states=50_000, verbose_errors=False)
"""Limits of one grammar. The lexer's initial fuel corresponds to about a second and 50 MB; an enum of 20,000 strings
needs less. A lexer state has up to 2 kB."""


class GrammarError(Exception):
    """llguidance rejects a grammar or a token."""


class GrammarWorker:
    """Grammars and the state of each answer."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._tokenizer, self._failure = None, ""
        try:
            if setup["tokenizer"] == "byte":
                self._tokenizer = LLTokenizer("byte")
            else:
                n_vocab, eos_token = setup["vocab_size"], setup["eos_ids"]
                self._tokenizer = LLTokenizer(setup["tokenizer"], n_vocab=n_vocab, eos_token=eos_token)
        except Exception as error:  # noqa: BLE001 - llguidance usually raises ValueError, but not always
            self._failure = f"not supported with this model's tokenizer ({error})"
        self._json_options = setup["json_options"]
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._answers: dict[int, LLMatcher] = {}
        self._lock = threading.Lock()

    def compile(self, kind: str, text: str) -> bytes:
        """Compile a grammar unless it is cached."""
        self._grammar(kind, text)
        return b""

    def start(self, answer: int, kind: str, text: str, tokens: list[int]) -> bytes:
        """Return the mask that follows ``tokens``."""
        matcher = self._answers[answer] = self._grammar(kind, text).deep_copy()
        matcher.consume_tokens(tokens)
        return mask_of(matcher)

    def advance(self, answer: int, token: int) -> bytes:
        """Return the mask that follows ``token``."""
        matcher = self._answers[answer]
        matcher.consume_token(token)
        return mask_of(matcher)

    def forget(self, answer: int) -> None:
        """Drop the state of a finished answer."""
        self._answers.pop(answer, None)

    def _grammar(self, kind: str, text: str) -> LLMatcher:
        with self._lock:
            cached = self._compiled.get((kind, text))
            if cached is not None:
                self._compiled.move_to_end((kind, text))
                return cached
        if self._tokenizer is None:
            raise GrammarError(self._failure)
        matcher = LLMatcher(self._tokenizer, grammar_of(kind, text, self._json_options), log_level=0, limits=LIMITS)
        mask_of(matcher)  # the first mask of a large grammar is slow
        with self._lock:
            self._compiled[kind, text] = matcher
            if len(self._compiled) > COMPILED_GRAMMARS:
                self._compiled.popitem(last=False)
        return matcher


def grammar_of(kind: str, text: str, json_options: JsonCompileOptions) -> str:
    """Return a constraint in llguidance's format."""
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "lark":
        return LLMatcher.grammar_from_lark(text)
    schema = '{"type": "object"}' if kind == "json_object" else text
    return LLMatcher.grammar_from_json_schema(schema, overrides=json_options)


def mask_of(matcher: LLMatcher) -> bytes:
    """Return the mask of the next token. Raise GrammarError if the matcher has failed."""
    mask = matcher.compute_bitmask()
    if reason := matcher.get_error():
        raise GrammarError(reason)
    return mask


def read(stream: BinaryIO) -> bytes:
    """Return the next message; empty at the end of the stream."""
    return stream.read(int.from_bytes(stream.read(4)))


class Replies:
    """Writes replies. Thread-safe."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def send(self, number: int, function: Callable[..., bytes], arguments: list[object]) -> None:
        """Call ``function`` and send the result."""
        try:
            body = b"+" + function(*arguments)
        except (GrammarError, ValueError) as error:
            body = b"-" + str(error).encode(errors="replace")
        except BaseException:  # noqa: BLE001 - the state after a panic of llguidance is undefined
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        with self._lock:
            self._stream.write((len(body) + 4).to_bytes(4) + number.to_bytes(4) + body)
            self._stream.flush()


def limit_memory(size: int) -> None:
    """Limit the address space to ``size`` bytes, if the system supports it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, limit in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, size)):
        with suppress(ValueError, OSError):  # a narrower limit applies already, or the system has none
            resource.setrlimit(name, (limit, limit))


def main() -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the server, which then ends this process
    requests, replies = sys.stdin.buffer, Replies(sys.stdout.buffer)
    setup = json.loads(read(requests))
    limit_memory(setup["memory_bytes"])
    threading.stack_size(setup["stack_bytes"])
    worker = GrammarWorker(setup)
    # two threads, so that slow compilations do not delay masks
    compiling, matching = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    while message := read(requests):
        number, finished, name, *arguments = json.loads(message)
        for answer in finished:
            matching.submit(worker.forget, answer)  # after earlier requests of that answer
        threads = compiling if name == "compile" else matching
        threads.submit(replies.send, number, getattr(worker, name), arguments)
    os._exit(0)  # without waiting for running computations


if __name__ == "__main__":
    main()
