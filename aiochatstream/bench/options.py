"""Command-line options of ``aiochatstream bench``."""

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
Load a running server with requests and measure its speed. Requests are sent to URL only.

A first, unmeasured request checks that the server supports the protocol. In the closed loop (--concurrency), N users
each send a request, read the answer to its end, and repeat; a refused user waits for Retry-After, at most 10 s. In the
open loop (--rate), requests are sent on a schedule, however many are still running.
"""

METRICS = """\
metrics (vLLM's definitions; times start just before a request is sent and include connecting):
  TTFT      time to first token: until the first text arrives, of the answer or of a thought before it (thoughts are
            texts and tokens like others, except that plain text and chatstream's format do not contain them)
  TPOT      time per output token after the first, of one request: (E2E - TTFT) / (tokens - 1)
  ITL       inter-token latency: gaps between successive texts, all requests pooled; texts that arrive in one read have
            a gap near 0
  E2E       end-to-end latency: until the end of the answer's body
  queue     wait for a slot, as reported by the server (sse only)
  requests/s, tokens/s
            completed requests, and the tokens of their answers, divided by the time from the first request to the last
            end
  goodput   completed requests per second that meet all limits of --goodput
  refused   requests answered with 503 or 429 (or with the error too_many_requests), and the time until that answer
  failed    other requests without a complete answer: another status, a lost connection, --timeout
  bytes/token
            size of the bodies with their chunk framing, without headers, per token of completed answers
Percentiles are interpolated linearly between the two nearest values, as in numpy. TTFT, TPOT, ITL, E2E and queue cover
completed requests, without slow readers and aborts: those clients would measure themselves.
Tokens are counted by the server (done event, usage chunk), otherwise by --tokenizer; without both, each text counts as
one token, and the output notes it.

exit codes: 0 measured; 1 no request was completed; 2 wrong use, or the first request failed; 130 Ctrl-C (prints the
results so far)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the load generator to ``parser``."""
    parser.description, parser.epilog = DESCRIPTION, METRICS
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "aiochatstream bench URL [options]"
    _add_target(parser)
    _add_load(parser)
    _add_requests(parser)
    _add_output(parser)


def read_plan(options: argparse.Namespace) -> Plan:
    """Return the plan of the command line. Raise ValueError, with a message for the user, if it is invalid."""
    values = {name: value for name, value in vars(options).items() if name in Plan.__dataclass_fields__}
    if values["protocol"] != "chatstream":
        values["max_tokens"] = values["max_tokens"] or DEFAULT_MAX_TOKENS
        values["temperature"] = values["temperature"] or 0.0
    if values["seed"] is None:
        values["seed"] = random.SystemRandom().randrange(10**6)
    for name in ("goodput", "headers"):
        values[name] = tuple(values[name] or ())
    return Plan(**values)


def _add_target(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the server").add_argument
    add("url", metavar="URL", help="for example http://127.0.0.1:8080; the path of the protocol is added if missing")
    add(
        "--protocol",
        default="sse",
        choices=["sse", "text", "openai", "chatstream"],
        help="sse (default) or text: aiochatstream; openai: streamed chat completions (vLLM, transformers serve, "
        "llama.cpp); chatstream: chatstream 0.3.0, which repeats the whole text so far",
    )
    add("--model", metavar="NAME", help="model of an openai server (default: the first in /v1/models)")
    add(
        "--header",
        dest="headers",
        action="append",
        type=_header,
        metavar="'NAME: VALUE'",
        help="header of each request; repeatable",
    )
    add("--timeout", type=_number(0.001), default=300.0, metavar="S", help="seconds until a request fails (300)")


def _add_load(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the load").add_argument
    add("--concurrency", type=_integer(1), metavar="N", help="closed loop with N concurrent users (default 1)")
    add("--sweep", type=_sweep, default=(), metavar="1,2,4", help="a closed-loop run for each concurrency")
    add("--rate", type=_number(0.000001), metavar="R", help="open loop: R new users per second, Poisson arrivals")
    add(
        "--burstiness",
        type=_number(0.01),
        metavar="B",
        help="shape of the gamma distribution of the open loop's gaps: 1 (default) is Poisson, lower is burstier, "
        "higher is steadier",
    )
    add(
        "--requests",
        type=_integer(1),
        metavar="N",
        help="requests of a run (default: 4 per user, at least 16; 32 in the open loop)",
    )
    add("--duration", type=_number(0.001), metavar="S", help="start no request after S seconds; finish running ones")
    add("--warmup", type=_integer(0), default=0, metavar="N", help="unmeasured requests before each run")
    add("--turns", type=_integer(1), default=1, metavar="N", help="messages of a user, in one conversation (1)")
    add(
        "--abort-fraction",
        type=_fraction,
        default=0.0,
        metavar="F",
        help="fraction of requests, 0 to 1, that disconnect after a random part of --max-tokens",
    )
    add(
        "--slow-readers",
        type=_fraction,
        default=0.0,
        metavar="F",
        help="fraction of requests, 0 to 1, that wait 0.1 s after each chunk",
    )


def _add_requests(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the requests").add_argument
    add(
        "--prompts",
        default="mixed",
        metavar="KIND|FILE",
        help="mixed (default), en-short, en-long, ja-short or ja-long: built in, all distinct; or a file with a prompt "
        "per line (.json: a list of strings), used unchanged and in turn",
    )
    add(
        "--max-tokens",
        type=_integer(1),
        metavar="N",
        help=f"maximum tokens of an answer (default {DEFAULT_MAX_TOKENS})",
    )
    add("--temperature", type=_number(0), metavar="T", help="sampling temperature; 0 (default) is greedy")
    add("--ignore-eos", action="store_true", help="generate exactly --max-tokens tokens (aiochatstream, vLLM)")
    add("--extra-body", type=_object, default={}, metavar="JSON", help="additional fields of each request's body")
    add(
        "--tokenizer",
        metavar="MODEL",
        help="HuggingFace id or folder of a tokenizer that counts tokens if the server does not",
    )
    add("--seed", type=_integer(0), metavar="N", help="seed of prompts and arrivals (default: random)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output besides the table").add_argument
    add(
        "--goodput",
        nargs="+",
        type=_goodput,
        metavar="NAME:MS",
        help=f"count requests that meet these limits in milliseconds, for example ttft:500 tpot:100 "
        f"({', '.join(GOODPUT_METRICS)})",
    )
    add("--json", type=Path, metavar="FILE", help="parameters, environment, metrics and all requests")
    add("--csv", type=Path, metavar="FILE", help="a line for each request")
    add("--html", type=Path, metavar="FILE", help="a self-contained page with plots (needs aiochatstream[bench])")


def _integer(minimum: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be an integer, at least {minimum}, not {text!r}")
        return int(text)

    return integer


def _number(minimum: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1
        if not minimum <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be a number, at least {minimum:g}, not {text!r}")
        return value

    return number


def _fraction(text: str) -> float:
    value = _number(0)(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text!r}")
    return value


def _sweep(text: str) -> tuple[int, ...]:
    return tuple(_integer(1)(part) for part in text.split(","))


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
