"""Answers with tool calls, prose and broken JSON, parsed in parts: no exception, no text lost, and a result that does
not depend on the division of the text.
"""

from __future__ import annotations

import json
import random
import traceback

from aiochatstream.web.openai.tool_calls import DECODER, SEPARATORS, CallPart, Part, ToolCallParser
from fuzz_targets import Findings, rounds

NAMES = {"f", "get_weather"}

PROSE = [
    "Let me see.",
    "\n",
    " ",
    "；",
    "日本",
    "👩‍🚀",
    "\u2028",
    "\ufffd",
    "a",
    '"',
    "\\",
    "\t",
    "```json\n",
    "[1]",
    "{x}",
    "; ",
    ",",
]
MARKUP = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<tool_call",
    "[TOOL_",
    "<",
    "[",
    "]",
    "{",
    "}",
    '{"name',
    '\n{"name"',
]
VALUES = [
    "a",
    "a\nb",
    "日\t本",
    "<tool_call>",
    "}",
    '"',
    "\\",
    "\ud83d",
    1,
    -0.5,
    1e308,
    None,
    True,
    [],
    {},
    [{"name": "f"}],
    {"x": {}},
]
MAX_FRAGMENTS = 10
SPLITS = 3


def fuzz(seconds: float, seed: int) -> Findings:
    """Parse random answers."""
    findings = Findings()
    for number in rounds(seconds, seed):
        chance = random.Random(number)  # noqa: S311 - not security-relevant
        text = _answer(chance)
        findings.tried += 1
        try:
            fault = _fault(text, chance)
        except Exception:  # noqa: BLE001 - any error is a finding
            fault = traceback.format_exc(limit=-2)
        if fault:
            findings.faults.append(f"seed {number}: {fault}: {text!r}")
            if len(findings.faults) >= 20:
                return findings
    return findings


def _answer(chance: random.Random) -> str:
    makers = (lambda: chance.choice(PROSE), lambda: chance.choice(MARKUP), lambda: _call(chance), lambda: _call(chance))
    fragments = [chance.choice(makers)() for _ in range(chance.randint(1, MAX_FRAGMENTS))]
    text = chance.choice(["", "\n", ";"]).join(fragments)
    return text[: chance.randint(0, len(text))] if chance.random() < 0.3 else text


def _call(chance: random.Random) -> str:
    arguments = {chance.choice("xyz"): chance.choice(VALUES) for _ in range(chance.randint(0, 2))}
    call = {
        "name": chance.choice(["f", "get_weather", "unknown", 1]),
        chance.choice(["arguments", "parameters"]): chance.choice(
            [arguments, arguments, json.dumps(arguments), "?", None]
        ),
    }
    text = json.dumps(call, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, None, 1]))
    if chance.random() < 0.3:
        text = text.replace("\\n", "\n").replace("\\t", "\t")
    if chance.random() < 0.2:
        at = chance.randrange(len(text))
        text = text[:at] + chance.choice(["", "{", '"', ",", "\n"]) + text[at + 1 :]
    return chance.choice(["{}", "<tool_call>{}</tool_call>", "<tool_call>\n{}", "[{}]", "[TOOL_CALLS][{}]"]).replace(
        "{}", text
    )


def _fault(text: str, chance: random.Random) -> str:
    whole = _read(text, [])
    if not _accounts_for(whole, text):
        return f"text lost, {whole}"
    for _ in range(SPLITS):
        cuts = sorted(chance.randint(0, len(text)) for _ in range(chance.choice([1, 3, len(text)])))
        parts = _read(text, cuts)
        if parts != whole:
            return f"other parts when cut at {cuts}, {parts}"
    return ""


def _read(text: str, cuts: list[int]) -> list[Part]:
    parser = ToolCallParser(NAMES)
    parts: list[Part] = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        parts += parser.feed(text[begin:end])
    joined: list[Part] = []
    for part in [*parts, *parser.close()]:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _accounts_for(parts: list[Part], text: str) -> bool:
    """Return whether ``parts`` contain all of ``text`` except tags and separators."""
    if not parts:
        return SEPARATORS.fullmatch(text) is not None
    part = parts[0]
    if isinstance(part, str):
        return any(
            text.startswith(part, at)
            and SEPARATORS.fullmatch(text, 0, at)
            and _accounts_for(parts[1:], text[at + len(part) :])
            for at in range(len(text))
        )
    at = text.find("{")
    if at < 0 or not SEPARATORS.fullmatch(text, 0, at):
        return False
    value, end = DECODER.raw_decode(text, at)
    return _is(part, value) and _accounts_for(parts[1:], text[end:])


def _is(part: CallPart, value: dict[str, object]) -> bool:
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = DECODER.decode(arguments)
    return part.name == value["name"] and json.loads(part.arguments) == (arguments or {})
