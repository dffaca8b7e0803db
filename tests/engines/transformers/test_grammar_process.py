"""The process in which grammars are compiled: what it cannot do ends it, and only it."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("llguidance", reason="llguidance is missing: pip install 'aiochatstream[constrained]'")

from aiochatstream import Constraint
from aiochatstream.constraint import JSON_OPTIONS
from aiochatstream.engines.transformers import grammar_process
from aiochatstream.engines.transformers import grammars as module
from aiochatstream.engines.transformers.grammar_process import Bounds, GrammarProcess, ProcessEnded, SerialisedTokenizer
from aiochatstream.engines.transformers.grammar_worker import COMPILED_GRAMMARS, Worker
from aiochatstream.engines.transformers.grammars import MAX_BYTES, MASK_BITS, Grammars, Matcher
from aiochatstream.errors import InvalidValue
from tests.helpers import PATIENCE

NUMBERS = Constraint.json_schema({"type": "array", "items": {"type": "integer"}})
ROOMY = Bounds(stack_bytes=8 << 20, memory_bytes=1 << 30)
TOO_COMPLEX = "too complex; to compile it must take at most"
CHOICES = {"enum": [f"choice {number}" for number in range(20_000)]}


def chain(length: int) -> dict[str, Any]:
    """Return a schema that is a chain of references."""
    links: dict[str, Any] = {f"d{at}": {"$ref": f"#/$defs/d{at + 1}"} for at in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "string"}}}


@pytest.fixture(scope="module")
def grammars(tokenizer: Any) -> Iterator[Grammars]:
    made = Grammars(tokenizer, len(tokenizer), {tokenizer.eos_token_id})
    yield made
    made.close()


def allowed(matcher: Matcher, tokenizer: Any, text: str) -> bool:
    """Return whether ``text``, a token, may come next."""
    (token,) = tokenizer.encode(text, add_special_tokens=False)
    return matcher.allows(token)


@pytest.mark.parametrize("length", [700, 2494, 8000])
def test_a_chain_of_references_that_overflows_the_compilers_stack_is_refused(grammars: Grammars, length: int) -> None:
    for _ in range(2):
        with pytest.raises(InvalidValue, match=f"^constraint: this JSON schema is {TOO_COMPLEX}"):
            grammars.check(Constraint.json_schema(chain(length)))
    grammars.check(NUMBERS)


def test_the_serving_process_compiles_what_no_trial_passes() -> None:
    """So what passes a trial is far from the bounds of the serving process."""
    text = json.dumps(chain(3000))
    outcomes = []
    for bounds in (module.TRIAL, module.SERVING):
        process = GrammarProcess(SerialisedTokenizer(), bounds)
        outcomes.append(process.request("compile", "json_schema", text, cpu_seconds=PATIENCE).exception(PATIENCE))
        process.close()
    assert isinstance(outcomes[0], ProcessEnded)
    assert outcomes[1] is None
    assert module.SERVING.memory_bytes > 4 * module.TRIAL.memory_bytes
    assert module.COMPILE_CPU_SECONDS >= 4 * module.TRIAL_CPU_SECONDS


def test_memory_above_the_bound_ends_the_process() -> None:
    for memory, ends in ((40 << 20, True), (1 << 30, False)):
        process = GrammarProcess(SerialisedTokenizer(), Bounds(8 << 20, memory))
        reply = process.request("compile", "json_schema", json.dumps(CHOICES), cpu_seconds=PATIENCE)
        assert isinstance(reply.exception(PATIENCE), ProcessEnded) is ends
        process.close()


def test_processor_time_above_the_bound_ends_the_process() -> None:
    process = GrammarProcess(SerialisedTokenizer(), ROOMY)
    patterns = [{"type": "string", "pattern": f".*a.{{{length}}}b.*"} for length in range(1, 30)]
    reply = process.request("compile", "json_schema", json.dumps({"allOf": patterns}), cpu_seconds=0.5)
    assert isinstance(reply.exception(PATIENCE), ProcessEnded)
    late = process.request("compile", "json_schema", "{}", cpu_seconds=PATIENCE)
    assert isinstance(late.exception(PATIENCE), ProcessEnded)


def test_requests_that_wait_for_one_another_are_not_charged_for_it() -> None:
    """Else clients with grammars that are slow to compile could together end the process of all answers."""
    text = json.dumps({"properties": {f"p{number}": {"type": "integer"} for number in range(1500)}})
    process = GrammarProcess(SerialisedTokenizer(), ROOMY)
    alone = process.request("compile", "json_schema", text, cpu_seconds=PATIENCE)
    begin = psutil.Process(process._process.pid).cpu_times().user
    assert alone.result(PATIENCE) == b""
    seconds = psutil.Process(process._process.pid).cpu_times().user - begin
    waiting = [
        process.request("compile", "json_schema", text.replace("p0", f"q{number}"), cpu_seconds=3 * seconds)
        for number in range(8)
    ]
    assert [reply.result(PATIENCE) for reply in waiting] == [b""] * 8
    process.close()


def test_an_answer_goes_on_in_a_new_process_when_another_ones_grammar_has_ended_the_old_one(
    grammars: Grammars, tokenizer: Any
) -> None:
    matcher = grammars.matcher(NUMBERS)
    for text in ("[", "1", ","):
        assert allowed(matcher, tokenizer, text)
        matcher.advance(tokenizer.convert_tokens_to_ids(text))
    before = matcher.mask.copy()
    grammars.process()._process.kill()
    grammars.process()._process.wait()
    matcher.advance(tokenizer.convert_tokens_to_ids("2"))
    after = matcher.mask
    assert (before != after).any()
    assert allowed(matcher, tokenizer, "]")
    assert not allowed(matcher, tokenizer, "[")


def test_a_grammar_that_ends_the_process_twice_at_the_same_place_fails(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher = grammars.matcher(NUMBERS)
    assert matcher.mask.any()
    monkeypatch.setattr(module, "process", lambda: ended)
    ended = GrammarProcess(SerialisedTokenizer(), ROOMY)
    ended.close()
    ended._process.wait()
    grammars._process = None
    matcher._process = ended
    matcher.advance(0)
    with pytest.raises(InvalidValue, match="cannot be followed to its end: it has become too complex"):
        _ = matcher.mask


def test_a_worker_that_fails_for_another_reason_accepts_nothing(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for code in ("raise RuntimeError", "pass", "import sys; sys.stdout.write('x' * 9)"):
        script = tmp_path / "worker.py"
        script.write_text(code)
        monkeypatch.setattr(grammar_process, "WORKER", script)
        grammars = Grammars(tokenizer, len(tokenizer), {tokenizer.eos_token_id})
        with pytest.raises(InvalidValue, match=TOO_COMPLEX):
            grammars.check(NUMBERS)
        grammars.close()


def test_a_grammar_is_tried_once_and_the_number_of_remembered_outcomes_is_bounded(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(constraint: Constraint) -> str:
        tried.append(constraint.text)
        return "constraint: refused."

    monkeypatch.setattr(module, "_try", refuse)
    monkeypatch.setattr(module, "CACHED_OUTCOMES", 3)
    monkeypatch.setattr(module, "_outcomes", OrderedDict())
    for number in (1, 1, 2, 1, 3, 1, 4, 1, 2):
        constraint = Constraint("regex", f"number {number}")
        with pytest.raises(InvalidValue, match="refused"):
            grammars.check(constraint)
        assert grammars.knows(constraint)
    assert len(grammars._outcomes) == 3
    assert [text[-1] for text in tried] == ["1", "2", "3", "4", "2"]


def test_a_grammar_that_passes_its_trial_and_is_rejected_for_the_models_tokens_is_refused_from_then_on(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each request with it would take a slot before it is refused."""
    monkeypatch.setattr(module, "_try", lambda constraint: "")
    for _ in range(2):
        with pytest.raises(InvalidValue, match="this regular expression cannot be followed"):
            grammars.check(Constraint("regex", "("))


def test_a_known_grammar_is_checked_without_compiling_it_again(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars.check(NUMBERS)
    monkeypatch.setattr(module, "process", None)
    monkeypatch.setattr(module, "_try", None)
    grammars.check(NUMBERS)
    assert grammars.knows(NUMBERS)


def test_a_schema_that_is_too_long_is_refused_before_any_trial(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_try", None)
    constraint = Constraint.json_schema({"enum": ["x" * MAX_BYTES]})
    with pytest.raises(InvalidValue, match=f"must have at most {MAX_BYTES} bytes, not {len(constraint.text)}"):
        grammars.check(constraint)


@pytest.fixture
def worker() -> Worker:
    """Return what runs in the process, here for schemas that do no harm."""
    return Worker({"tokenizer": "byte", "json_options": JSON_OPTIONS})


def test_the_worker_keeps_the_grammars_used_last(worker: Worker) -> None:
    for number in range(COMPILED_GRAMMARS + 5):
        worker.compile("regex", f"number {number}")
        worker.compile("regex", "number 0")
    assert len(worker._compiled) == COMPILED_GRAMMARS
    assert ("regex", "number 0") in worker._compiled


def test_a_schema_cannot_change_how_json_is_written(worker: Worker) -> None:
    guidance = {"item_separator": ";", "whitespace_flexible": False, "lenient": True}
    schema = json.dumps({"type": "array", "items": {"type": "integer"}, "x-guidance": guidance})
    mask = worker.start(0, "json_schema", schema, list(b"[1"))
    bits = {chr(byte) for byte in range(128) if mask[byte // 8] >> byte % 8 & 1}
    assert bits == {*"0123456789", ",", "]", " ", "\n"}
    with pytest.raises(Exception, match="Unimplemented keys"):
        worker.compile("json_schema", json.dumps({"type": "array", "uniqueItems": True, "x-guidance": guidance}))


def test_the_state_of_a_finished_answer_is_dropped_after_its_last_request(grammars: Grammars) -> None:
    process = grammars.process()
    for _ in range(50):
        matcher = grammars.matcher(NUMBERS)
        matcher.advance(int(matcher.mask.nonzero()[0][0]) * MASK_BITS)
        number = matcher._number
        del matcher
    assert process._finished.get_nowait() == number
    assert grammars.matcher(NUMBERS).mask.any()
    assert grammars.process() is process
    late = process.request("advance", number - 1, 0, cpu_seconds=PATIENCE)
    assert isinstance(late.exception(PATIENCE), ProcessEnded), "it is still there"
