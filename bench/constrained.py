"""``python bench/constrained.py``: compare whitespace rules for constrained JSON by a model's answers."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from common import FAILED, OK, integer, new_parser, progress, run_script, table, write_json
from transformers import AutoModelForCausalLM, AutoTokenizer

from aiochatstream import Constraint, GenerationParams, Prompt
from aiochatstream.engines.transformers.engine import TransformersEngine
from aiochatstream.engines.transformers.loading import choose_device, choose_dtype, folder, locate
from aiochatstream.prompts.chat_template import encode_messages
from aiochatstream.prompts.tools import render_tools_as_text, supports_tools

CONTEXT = 1024
SLOTS = 4

WHITESPACE: dict[str, dict[str, Any]] = {
    "none": {"whitespace_flexible": False},
    "one space": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
    "space or line": {"whitespace_pattern": r"(\n {0,16}| )?"},
    "any": {"whitespace_flexible": True},
}
"""Options of llguidance by name of the rule."""

EMPTY = re.compile(r"\[\s*\]|\{\s*\}")
"""An empty array or object. No answer contains one in a string."""

HELP = """\
The model answers 20 prompts greedily with each whitespace rule: arrays without minItems, objects with optional
properties, and calls of a function that tool_choice forces.
  empty      answers that contain an empty array or object
  valid      answers that end by themselves and are valid JSON
  at limit   answers that reach --max-tokens

exit codes: 0 measured; 1 the model failed; 2 wrong use, or the model is missing; 130 Ctrl-C
"""


def array(key: str, item: str = "string") -> dict[str, Any]:
    """Return a schema of an object with one array of ``item``, without minItems."""
    return {"type": "object", "properties": {key: {"type": "array", "items": {"type": item}}}, "required": [key]}


def optional(**types: str) -> dict[str, Any]:
    """Return a schema of an object with optional properties."""
    return {"type": "object", "properties": {name: {"type": kind} for name, kind in types.items()}}


ARRAYS: list[tuple[str, dict[str, Any]]] = [
    ("Give me the seven days of the week as JSON, an array of strings under the key items.", array("items")),
    ("List three primary colours as JSON, an array of strings under the key colours.", array("colours")),
    (
        "Give me the first five even numbers as JSON, an array of integers under the key numbers.",
        array("numbers", "integer"),
    ),
    ("Name four large cities of Japan as JSON, an array of strings under the key cities.", array("cities")),
    ("List the planets of the solar system as JSON, an array of strings under the key planets.", array("planets")),
    ("Which fruits are red? Answer in JSON, an array of strings under the key fruits.", array("fruits")),
    ("Write JSON with the key tags: three tags for an article about cooking.", array("tags")),
    ("List the four seasons as JSON under the key seasons.", array("seasons")),
    ("Extract the names as JSON under the key names: Anna met Ben and Carla in Paris.", array("names")),
    ("Give me the steps for making tea as JSON, an array of strings under the key steps.", array("steps")),
]

OPTIONAL: list[tuple[str, dict[str, Any]]] = [
    ("Describe Paris as JSON with the keys name and country.", optional(name="string", country="string")),
    ("Extract name and age as JSON: Tom is 31 years old.", optional(name="string", age="integer")),
    (
        "Give title, author and year of one famous novel as JSON.",
        optional(title="string", author="string", year="integer"),
    ),
    (
        "Is the sky blue? Answer as JSON with the keys answer (boolean) and reason.",
        optional(answer="boolean", reason="string"),
    ),
    (
        "Write a product as JSON with the keys name, price and in_stock.",
        optional(name="string", price="number", in_stock="boolean"),
    ),
]

CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("What is the weather in Tokyo?", "get_weather", optional(city="string", unit="string")),
    ("Send an email to Anna and Ben that the meeting is at noon.", "send_email", array("to")),
    ("Add milk, eggs and bread to my shopping list.", "add_items", array("items")),
    ("Set a timer for ten minutes.", "set_timer", optional(minutes="integer", label="string")),
    ("Search for hotels in Rome.", "search", optional(query="string", count="integer")),
]


@dataclass(frozen=True)
class ConstrainedAnswer:
    """An answer and its classification."""

    whitespace: str
    question: str
    text: str
    empty: bool
    valid: bool
    at_limit: bool


def cases(tokenizer: Any, options: dict[str, Any]) -> Iterator[tuple[str, list[int], Constraint]]:
    """Yield question, prompt and constraint for each of the prompts."""
    for question, schema in [*ARRAYS, *OPTIONAL]:
        ids = encode_messages(tokenizer, [{"role": "user", "content": question}])
        yield question, ids, Constraint("lark", f"start: {json_rule(schema, options)}")
    space = "" if options.get("whitespace_flexible") is False and "item_separator" not in options else " "
    for question, name, schema in CALLS:
        tool = {"type": "function", "function": {"name": name, "parameters": schema}}
        messages, tools = [{"role": "user", "content": question}], [tool]
        if not supports_tools(tokenizer):
            messages, tools = render_tools_as_text(messages, tools), []
        begin = json.dumps(f'[{{"name":{space}"{name}",{space}"arguments":{space}')
        lark = f'start: {begin} arguments "}}]"\narguments: {json_rule(schema, options)}'
        yield question, encode_messages(tokenizer, messages, tools or None), Constraint("lark", lark)


def json_rule(schema: dict[str, Any], options: dict[str, Any]) -> str:
    """Return the right side of a rule for JSON of ``schema``."""
    return "%json " + json.dumps({**schema, "x-guidance": options})


def answer(
    engine: TransformersEngine, whitespace: str, question: str, prompt: Prompt, params: GenerationParams
) -> ConstrainedAnswer:
    """Return the model's answer."""
    deltas = list(engine.generate(prompt, params))
    text = "".join(delta.text for delta in deltas)
    at_limit = deltas[-1].finish_reason == "length"
    try:
        json.loads(text)
        valid = not at_limit
    except ValueError:
        valid = False
    return ConstrainedAnswer(whitespace, question, text, EMPTY.search(text) is not None, valid, at_limit)


def measure(engine: TransformersEngine, max_tokens: int) -> list[ConstrainedAnswer]:
    """Return the answers to all prompts with each whitespace rule."""
    outcomes = []
    with ThreadPoolExecutor(SLOTS) as threads:
        for name, options in WHITESPACE.items():
            jobs = []
            for question, ids, constraint in cases(engine.tokenizer, options):
                params = GenerationParams(temperature=0, max_new_tokens=max_tokens, constraint=constraint)
                jobs.append(threads.submit(answer, engine, name, question, Prompt([], ids), params))
            for job in jobs:
                outcomes.append(job.result())
                progress(f"{name}: {len(outcomes) % len(jobs) or len(jobs)} of {len(jobs)}", live=True)
    return outcomes


def summary_table(outcomes: list[ConstrainedAnswer]) -> str:
    """Return the counts as a table."""
    rows = []
    for name in WHITESPACE:
        own = [outcome for outcome in outcomes if outcome.whitespace == name]
        counts = (sum(getattr(outcome, kind) for outcome in own) for kind in ("empty", "valid", "at_limit"))
        rows.append([name, str(len(own)), *map(str, counts)])
    return table(["whitespace", "answers", "empty", "valid", "at limit"], rows)


def read_options() -> argparse.Namespace:
    parser = new_parser("Compare whitespace rules for constrained JSON by a model's answers.", HELP)
    parser.add_argument("--model", metavar="MODEL", help="HuggingFace id, folder or .gguf file")
    parser.add_argument("--max-tokens", type=integer(16, 800), default=96, help="maximum tokens of an answer (96)")
    parser.add_argument("--texts", action="store_true", help="print the answers as well")
    return parser.parse_args()


def main() -> int:
    options = read_options()
    try:
        source = folder(locate(options.model))
    except FileNotFoundError as error:
        progress(str(error))
        return 2
    device = choose_device()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=choose_dtype(device))
    engine = TransformersEngine(model, AutoTokenizer.from_pretrained(source), device=device)
    with closing(engine):
        engine.load(SLOTS, CONTEXT)
        outcomes = measure(engine, options.max_tokens)
    if options.texts:
        for outcome in outcomes:
            limit = " [at limit]" if outcome.at_limit else ""
            print(f"{outcome.whitespace}: {outcome.question}\n  {outcome.text!r}{limit}")
    print(summary_table(outcomes))
    write_json(options, "constrained", {"outcomes": [asdict(outcome) for outcome in outcomes]}, interrupted=False)
    return OK if outcomes else FAILED


if __name__ == "__main__":
    run_script(main)
