"""The command line of ``aiochatstream bench``."""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiochatstream.bench.plan import GOODPUT_METRICS, Plan

DEFAULT_MAX_TOKENS = 64

DESCRIPTION = """\
Put a running server under load and say how fast it is. Only the URL that is given is asked.

One request goes ahead, unmeasured: it shows whether URL speaks the protocol. Then, in the closed loop (--concurrency),
so many users ask, read their answer to its end, and ask again; a refused user first waits as long as Retry-After says,
up to 10 s. In the open loop (--rate), requests are sent when their time comes, however many are under way.
"""

METRICS = """\
what is measured (vLLM's definitions; time runs from just before a request is sent, connecting included):
  TTFT      time to first token: until the first text arrives
  TPOT      time per output token after the first, of one request: (E2E - TTFT) / (n - 1), n its tokens
  ITL       inter-token latency: the gaps between one piece of text and the next, of all requests in one pool; pieces
            that arrive in one read have a gap near 0
  E2E       until the body of the answer has ended
  queue     the wait for a slot, as the server tells it (sse only)
  requests/s, tokens/s
            completed requests, and the tokens of their answers, over the time from the first request sent to the last
            one ended
  goodput   completed requests per second that keep every limit of --goodput
  refused   answered with 503 or 429 (or with the error too_many_requests), and the time until that answer
  failed    anything else that is not a whole answer: another status, a broken connection, --timeout
  bytes/token
            of the answers' bodies with their chunk framing, without headers, per token of completed answers
Percentiles interpolate linearly between the two nearest values (as numpy does). TTFT, TPOT, ITL, E2E and queue are of
completed requests; clients that hang up or read slowly are counted by themselves, as they would measure themselves.
Tokens are counted by the server (done event, usage chunk); where it tells nothing, by --tokenizer; without that, each
piece of text counts as one, and the output says so.

exit codes: 0 measured; 1 no request was completed; 2 wrong use, or the server cannot be asked; 130 Ctrl-C (prints what
was measured so far)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put the options of the load generator on ``parser``."""
    parser.description, parser.epilog = DESCRIPTION, METRICS
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "aiochatstream bench URL [options]"
    _add_target(parser)
    _add_load(parser)
    _add_requests(parser)
    _add_output(parser)


def read(options: argparse.Namespace) -> Plan:
    """The plan that the command line describes. Raises ValueError with one sentence."""
    values = {name: value for name, value in vars(options).items() if name in Plan.__dataclass_fields__}
    if values["protocol"] != "chatstream":
        values["max_tokens"] = values["max_tokens"] or DEFAULT_MAX_TOKENS
        values["temperature"] = values["temperature"] or 0.0
    if values["seed"] is None:
        values["seed"] = random.SystemRandom().randrange(10**6)
    for many in ("goodput", "headers"):
        values[many] = tuple(values[many] or ())
    return Plan(**values)


def _add_target(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the server").add_argument
    add("url", metavar="URL", help="such as http://127.0.0.1:8080; the protocol's path is added where it is missing")
    add(
        "--protocol",
        default="sse",
        choices=["sse", "text", "openai", "chatstream"],
        help="sse (default) or text: aiochatstream; openai: streamed chat completions (vLLM, transformers serve, "
        "llama.cpp); chatstream: chatstream 0.3.0, the whole text so far in each piece",
    )
    add("--model", metavar="NAME", help="for openai: the model to ask for (default: the first that /v1/models names)")
    add("--header", dest="headers", action="append", type=_header, metavar="'NAME: VALUE'", help="send it; repeatable")
    add("--timeout", type=_number(0.001), default=300.0, metavar="S", help="a request fails after S seconds (300)")


def _add_load(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the load").add_argument
    add("--concurrency", type=_whole(1), metavar="N", help="closed loop with N users at a time (default 1)")
    add("--sweep", type=_sweep, default=(), metavar="1,2,4", help="one closed-loop run for each concurrency")
    add("--rate", type=_number(0.000001), metavar="R", help="open loop: R new users a second, Poisson arrivals")
    add(
        "--burstiness",
        type=_number(0.01),
        metavar="B",
        help="the gaps of the open loop are gamma distributed with shape B: 1 (default) is Poisson, less is burstier, "
        "more is steadier",
    )
    add("--requests", type=_whole(1), metavar="N", help="requests of a run (default 4 a user, at least 16; 32 if open)")
    add("--duration", type=_number(0.001), metavar="S", help="begin no request after S seconds; those begun are ended")
    add("--warmup", type=_whole(0), default=0, metavar="N", help="requests before each run that do not count")
    add("--turns", type=_whole(1), default=1, metavar="N", help="messages of one user, in one conversation (1)")
    add(
        "--abort-fraction",
        type=_fraction,
        default=0.0,
        metavar="F",
        help="of the requests, 0 to 1: hang up midway, after a random part of --max-tokens",
    )
    add("--slow-readers", type=_fraction, default=0.0, metavar="F", help="of the requests: rest 0.1 s after each chunk")


def _add_requests(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is asked").add_argument
    add(
        "--prompts",
        default="mixed",
        metavar="KIND|FILE",
        help="mixed (default), en-short, en-long, ja-short or ja-long: built in, each one distinct; or a file, a "
        "prompt a line (.json: a list of strings), used in turn as they are",
    )
    add("--max-tokens", type=_whole(1), metavar="N", help=f"tokens of an answer (default {DEFAULT_MAX_TOKENS})")
    add("--temperature", type=_number(0), metavar="T", help="0 (default) is greedy")
    add("--ignore-eos", action="store_true", help="have exactly --max-tokens tokens (aiochatstream, vLLM)")
    add("--extra-body", type=_object, default={}, metavar="JSON", help="fields to add to each request's body")
    add("--tokenizer", metavar="MODEL", help="HuggingFace id or folder: counts tokens where the server does not tell")
    add("--seed", type=_whole(0), metavar="N", help="of prompts and arrivals (default: another one each time)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what comes out, besides the table").add_argument
    add(
        "--goodput",
        nargs="+",
        type=_goodput,
        metavar="NAME:MS",
        help=f"count requests that keep these limits in milliseconds, such as ttft:500 tpot:100 "
        f"({', '.join(GOODPUT_METRICS)})",
    )
    add("--json", type=Path, metavar="FILE", help="everything: parameters, environment, metrics, each request")
    add("--csv", type=Path, metavar="FILE", help="a line for each request")
    add("--html", type=Path, metavar="FILE", help="a page with plots, readable offline")


def _whole(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least}, not {text!r}")
        return int(text)

    return whole


def _number(least: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be a number from {least:g}, not {text!r}")
        return value

    return number


def _fraction(text: str) -> float:
    value = _number(0)(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text!r}")
    return value


def _sweep(text: str) -> tuple[int, ...]:
    return tuple(_whole(1)(part) for part in text.split(","))


def _goodput(text: str) -> tuple[str, float]:
    name, _, limit = text.partition(":")
    if name not in GOODPUT_METRICS:
        raise argparse.ArgumentTypeError(
            f"must be like ttft:500 with one of {', '.join(GOODPUT_METRICS)}, not {text!r}"
        )
    return name, _number(0)(limit)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(r"[\w-]+", name.strip()) or not value.isprintable():
        raise argparse.ArgumentTypeError(f"must be like 'Name: value', not {text!r}")
    return name.strip(), value.strip()


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, not {text!r}")
    return value
