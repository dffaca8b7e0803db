"""Tests of the grammar process: bounds, crashes, restarts and caches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("llguidance", reason="llguidance is missing: pip install 'aiochatstream[constrained]'")

from aiochatstream import Constraint
from aiochatstream.constraint import JSON_OPTIONS
from aiochatstream.engines.transformers import grammar_process, grammar_worker
from aiochatstream.engines.transformers import grammars as grammars_module
from aiochatstream.engines.transformers.grammar_process import Bounds, GrammarProcess, ProcessEnded, SerialisedTokenizer
from aiochatstream.engines.transformers.grammar_worker import COMPILED_GRAMMARS, GrammarWorker
from aiochatstream.engines.transformers.grammars import MASK_BITS, MAX_BYTES, Grammars, Matcher
from aiochatstream.errors import InvalidValue
from tests.helpers import PATIENCE

pytestmark = pytest.mark.slow

NUMBERS = Constraint.json_schema({"type": "array", "items": {"type": "integer"}})
ROOMY = Bounds(stack_bytes=8 << 20, memory_bytes=1 << 30)
TOO_COMPLEX = "too complex: its compilation must take at most"
CHOICES = {"enum": [f"choice {number}" for number in range(20_000)]}


def chain(length: int) -> dict[str, Any]:
    """Return a schema that is a chain of references."""
    links: dict[str, Any] = {f"d{at}": {"$ref": f"#/$defs/d{at + 1}"} for at in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "string"}}}


@pytest.fixture(scope="module")
def grammars(tokenizer: Any) -> Iterator[Grammars]:
    grammars = Grammars(tokenizer, len(tokenizer), {tokenizer.eos_token_id})
    yield grammars
    grammars.close()


def allowed(matcher: Matcher, tokenizer: Any, text: str) -> bool:
    """Return whether the token ``text`` may follow."""
    (token,) = tokenizer.encode(text, add_special_tokens=False)
    return matcher.allows(token)


def end(process: GrammarProcess) -> None:
    """Kill a process and wait for its end."""
    process.close()
    deadline = time.monotonic() + PATIENCE
    while not process.ended:
        assert time.monotonic() < deadline, "the process does not end"
        time.sleep(0.01)


@pytest.mark.parametrize("length", [700, 2494, 8000])
def test_a_chain_of_references_that_overflows_the_stack_is_an_error(grammars: Grammars, length: int) -> None:
    for _ in range(2):
        with pytest.raises(InvalidValue, match=f"^constraint: this JSON schema is {TOO_COMPLEX}"):
            grammars.check(Constraint.json_schema(chain(length)))
    grammars.check(NUMBERS)


def test_the_bounds_of_the_serving_process_are_wider_than_those_of_the_trial() -> None:
    """A grammar that passes its trial does not come near them."""
    text = json.dumps(chain(3000))
    outcomes = []
    for bounds in (grammars_module.TRIAL, grammars_module.SERVING):
        process = GrammarProcess(SerialisedTokenizer(), bounds)
        outcomes.append(process.request("compile", "json_schema", text, cpu_seconds=PATIENCE).exception(PATIENCE))
        process.close()
    assert isinstance(outcomes[0], ProcessEnded)
    assert outcomes[1] is None
    assert grammars_module.SERVING.memory_bytes > 4 * grammars_module.TRIAL.memory_bytes
    assert grammars_module.COMPILE_CPU_SECONDS >= 4 * grammars_module.TRIAL_CPU_SECONDS


def test_excessive_memory_ends_the_process() -> None:
    for memory, ends in ((40 << 20, True), (1 << 30, False)):
        process = GrammarProcess(SerialisedTokenizer(), Bounds(8 << 20, memory))
        reply = process.request("compile", "json_schema", json.dumps(CHOICES), cpu_seconds=PATIENCE)
        assert isinstance(reply.exception(PATIENCE), ProcessEnded) is ends
        process.close()


def test_excessive_processor_time_ends_the_process() -> None:
    process = GrammarProcess(SerialisedTokenizer(), ROOMY)
    patterns = [{"type": "string", "pattern": f".*a.{{{length}}}b.*"} for length in range(1, 30)]
    reply = process.request("compile", "json_schema", json.dumps({"allOf": patterns}), cpu_seconds=0.5)
    assert isinstance(reply.exception(PATIENCE), ProcessEnded)
    late = process.request("compile", "json_schema", "{}", cpu_seconds=PATIENCE)
    assert isinstance(late.exception(PATIENCE), ProcessEnded)


def test_the_processor_time_of_a_request_excludes_that_of_earlier_requests() -> None:
    """Otherwise several clients with slow grammars could end the process of all answers."""
    text = json.dumps({"properties": {f"p{number}": {"type": "integer"} for number in range(1500)}})
    process = GrammarProcess(SerialisedTokenizer(), ROOMY)
    first = process.request("compile", "json_schema", text, cpu_seconds=PATIENCE)
    before = psutil.Process(process.pid).cpu_times().user
    assert first.result(PATIENCE) == b""
    seconds = psutil.Process(process.pid).cpu_times().user - before
    waiting = [
        process.request("compile", "json_schema", text.replace("p0", f"q{number}"), cpu_seconds=3 * seconds)
        for number in range(8)
    ]
    assert [reply.result(PATIENCE) for reply in waiting] == [b""] * 8
    process.close()


def test_an_answer_continues_in_a_new_process_after_the_old_one_has_ended(grammars: Grammars, tokenizer: Any) -> None:
    matcher = grammars.matcher(NUMBERS)
    for text in ("[", "1", ","):
        assert allowed(matcher, tokenizer, text)
        matcher.advance(tokenizer.convert_tokens_to_ids(text))
    before = matcher.mask.copy()
    end(grammars.process())
    matcher.advance(tokenizer.convert_tokens_to_ids("2"))
    after = matcher.mask
    assert (before != after).any()
    assert allowed(matcher, tokenizer, "]")
    assert not allowed(matcher, tokenizer, "[")


def test_a_grammar_that_ends_the_process_twice_at_the_same_token_fails(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = GrammarProcess(SerialisedTokenizer(), ROOMY)
    end(process)
    monkeypatch.setattr(grammars, "process", lambda: process)
    matcher = Matcher(grammars, NUMBERS, 0)
    with pytest.raises(InvalidValue, match="the answer cannot continue: the grammar is too complex"):
        _ = matcher.mask


def test_a_broken_worker_accepts_no_grammar(tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for code in ("raise RuntimeError", "pass", "import sys; sys.stdout.write('x' * 9)"):
        script = tmp_path / "worker.py"
        script.write_text(code)
        monkeypatch.setattr(grammar_process, "WORKER", script)
        grammars = Grammars(tokenizer, len(tokenizer), {tokenizer.eos_token_id})
        with pytest.raises(InvalidValue, match=TOO_COMPLEX):
            grammars.check(NUMBERS)
        grammars.close()


def test_outcomes_are_cached_up_to_a_maximum_number(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = []

    def reject(constraint: Constraint) -> str:
        trials.append(constraint.text)
        return "constraint: rejected."

    monkeypatch.setattr(grammars_module, "_try", reject)
    monkeypatch.setattr(grammars_module, "CACHED_OUTCOMES", 3)
    grammars = Grammars(tokenizer, len(tokenizer), {tokenizer.eos_token_id})
    for number in (1, 1, 2, 1, 3, 1, 4, 1, 2):
        constraint = Constraint("regex", f"number {number}")
        with pytest.raises(InvalidValue, match="rejected"):
            grammars.check(constraint)
        assert grammars.knows(constraint)
    cached = [number for number in (1, 2, 3, 4) if grammars.knows(Constraint("regex", f"number {number}"))]
    assert cached == [1, 2, 4]
    assert [text[-1] for text in trials] == ["1", "2", "3", "4", "2"]
    grammars.close()


def test_a_rejection_by_the_serving_process_is_cached(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each request with the grammar would occupy a slot before it is rejected."""
    monkeypatch.setattr(grammars_module, "_try", lambda constraint: "")
    for _ in range(2):
        with pytest.raises(InvalidValue, match="this regular expression is not supported"):
            grammars.check(Constraint("regex", "("))


def test_a_cached_outcome_needs_no_process(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars.check(NUMBERS)
    monkeypatch.setattr(grammars, "process", None)
    monkeypatch.setattr(grammars_module, "_try", None)
    grammars.check(NUMBERS)
    assert grammars.knows(NUMBERS)


def test_a_schema_that_is_too_long_is_an_error_without_a_trial(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars_module, "_try", None)
    constraint = Constraint.json_schema({"enum": ["x" * MAX_BYTES]})
    with pytest.raises(InvalidValue, match=f"must have at most {MAX_BYTES} bytes, not {len(constraint.text)}"):
        grammars.check(constraint)


@pytest.fixture
def worker() -> GrammarWorker:
    """The worker in this process, for harmless schemas."""
    return GrammarWorker({"tokenizer": "byte", "json_options": JSON_OPTIONS})


def test_the_worker_caches_the_most_recently_used_grammars(
    worker: GrammarWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    grammar_of = grammar_worker.grammar_of

    def counted(kind: str, text: str, json_options: Any) -> str:
        compiled.append(text)
        return grammar_of(kind, text, json_options)

    monkeypatch.setattr(grammar_worker, "grammar_of", counted)
    texts = [f"number {number}" for number in range(COMPILED_GRAMMARS + 5)]
    for text in texts:
        worker.compile("regex", text)
        worker.compile("regex", texts[0])
    assert compiled == texts
    cached = [texts[0], *texts[6:]]
    for text in cached:
        worker.compile("regex", text)
    assert compiled == texts
    worker.compile("regex", texts[5])
    assert compiled == [*texts, texts[5]]


def test_a_schema_cannot_change_the_options_of_json(worker: GrammarWorker) -> None:
    guidance = {"item_separator": ";", "whitespace_flexible": False, "lenient": True}
    schema = json.dumps({"type": "array", "items": {"type": "integer"}, "x-guidance": guidance})
    mask = worker.start(0, "json_schema", schema, list(b"[1"))
    bits = {chr(byte) for byte in range(128) if mask[byte // 8] >> byte % 8 & 1}
    assert bits == {*"0123456789", ",", "]", " ", "\n"}
    with pytest.raises(Exception, match="Unimplemented keys"):
        worker.compile("json_schema", json.dumps({"type": "array", "uniqueItems": True, "x-guidance": guidance}))


def test_the_state_of_a_finished_answer_is_dropped_after_its_last_request(grammars: Grammars) -> None:
    process = grammars.process()
    grammars.check(NUMBERS)
    first = 1_000_000
    for number in range(first, first + 50):
        matcher = Matcher(grammars, NUMBERS, number)
        matcher.advance(int(matcher.mask.nonzero()[0][0]) * MASK_BITS)
        del matcher
    assert grammars.matcher(NUMBERS).mask.any()
    assert grammars.process() is process
    late = process.request("advance", first + 48, 0, cpu_seconds=PATIENCE)
    assert isinstance(late.exception(PATIENCE), ProcessEnded), "the state still exists"
