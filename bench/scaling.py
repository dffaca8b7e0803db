"""``python bench/scaling.py``: measure a front of several servers under load and when they fail."""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common import FAILED, INTERRUPTED, OK, integer, new_parser, number, progress, run_script, table, write_json
from peers import PEERS, ROUTERS, installed_versions
from scaling_scenarios import SCENARIOS, STALL_S, Row, Scaling, Scenario
from scaling_servers import NotMeasured
from servers import new_event_loop

HELP = """\
Each scenario starts its servers in their own processes on 127.0.0.1: fake upstreams (tests/fake_upstream.py: an
OpenAI-compatible server without a model), and in front of them `aiochatstream serve URL...`, with the protocols "chat"
(/chat_stream with events; every request is of a new user, with a session) and "relay" (/v1/chat/completions);
"direct" is the upstream without a front; "vllm-router" and "litellm" are other fronts, if they are installed
(`python bench/peers.py install vllm-router litellm`). The text of an answer depends on its prompt only, and the client
compares every answer with it, word for word.

  overhead   one stream at a time without pauses, then --streams streams
  streams    --many-streams streams
  two        two upstreams against one, with more users than either has slots
  kill       kill -9 of one of two upstreams, in the middle of 100 answers
  stop       SIGSTOP of one of two upstreams, in the middle of 100 answers
  rolling    three upstreams restart (SIGTERM) one after the other, while 60 users continue
  overload   as many users as slots, and three times as many
  slow       one of two upstreams is ten times slower than the other
  affinity   prompt tokens from the upstreams' prefix caches, of conversations that use half of the slots, with one
             upstream (all that can be), with the front's choice among four, and with random choice ("direct")
  leave      clients disconnect, one after the other, until the upstream knows

figures
  whole, wrong, lost, refused, hung   answers that are complete and exact; that end regularly, but differ; that end with
                       an error or a lost connection; 429 and 503; silent for 30 or 60 s
  us/token             CPU time of the server's processes, all threads, per token that arrived, in microseconds
  TTFT                 from the request until the first text. E2E: until the end
  gap                  longest time between two texts of an answer, of all answers
  client               share of one core that the load client used

exit codes: 0 measured; 1 a server failed; 2 wrong use; 130 Ctrl-C (prints the results so far)
"""


@dataclass(frozen=True)
class Bar:
    """A limit of a figure, over all rows of a scenario that a server has.

    figure: name of the figure.
    combine: function that joins the values of the rounds.
    minimum: the limit is a minimum.
    """

    scenario: str
    server: str
    figure: str
    limit: float
    combine: Callable[[Sequence[float]], float] = max
    minimum: bool = False
    case: str = ""


def bars() -> list[Bar]:
    """Return the limits of the issue of front and upstreams, in its units: microseconds, seconds, MiB, counts."""
    failures = [
        Bar(scenario, "chat", outcome, 0, sum)
        for scenario in ("kill", "stop", "rolling")
        for outcome in ("wrong", "lost", "hung")
    ]
    both = ("chat", "relay")
    return [
        Bar("overhead", "relay", "cpu_us_per_token", 45, median, case="streams,"),
        Bar("overhead", "chat", "cpu_us_per_token", 100, median, case="streams,"),
        *(Bar("streams", name, "threads", 10) for name in both),
        *(Bar("streams", name, "rss_mib", 250) for name in both),
        *failures,
        Bar("kill", "chat", "longest_gap_s", 0.5),
        Bar("stop", "chat", "longest_gap_s", STALL_S + 0.5),
        *(Bar("leave", name, "max_s", 0.1) for name in both),
    ]


def check(bar: Bar, rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return the measured value of a bar; None if there is none."""
    values = [
        row[bar.figure]
        for row in rows
        if (row["scenario"], row["server"]) == (bar.scenario, bar.server) and bar.case in row["case"]
        if row.get(bar.figure) is not None
    ]
    if not values:
        return None
    measured = bar.combine(values)
    passed = measured >= bar.limit if bar.minimum else measured <= bar.limit
    name = f"{bar.scenario}, {bar.server}: {bar.figure}"
    return {"name": name, "measured": measured, "limit": bar.limit, "minimum": bar.minimum, "passed": passed}


def affinity_share(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return the smallest share of cached prompt tokens, divided by that with one upstream; None if not measured."""
    shares: dict[str, dict[str, float]] = {}
    for row in rows:
        if (row["scenario"], row["server"]) == ("affinity", "chat"):
            case, _, count = row["case"].rpartition(" of ")
            shares.setdefault(f"{case}, {row['round']}", {})[count] = row["cached_share"]
    measured = [share["4 upstreams"] / share["1 upstream"] for share in shares.values() if len(share) == 2]
    if not measured:
        return None
    name = "affinity, chat: cached tokens, share of all that can be"
    return {"name": name, "measured": min(measured), "limit": 0.95, "minimum": True, "passed": min(measured) >= 0.95}


def results(scaling: Scaling) -> dict[str, Any]:
    """Return the results for the JSON file."""
    checks = [check(bar, scaling.rows) for bar in bars()]
    checks.append(affinity_share(scaling.rows))
    return {
        "rows": scaling.rows,
        "bars": [result for result in checks if result is not None],
        "not_measured": scaling.not_measured,
    }


def render(report: dict[str, Any]) -> str:
    """Return the rows and the bars as tables of text."""
    parts = []
    for scenario in dict.fromkeys(row["scenario"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["scenario"] == scenario]
        hidden = ("scenario", "case", "server", "reasons")
        names = list(dict.fromkeys(name for row in rows for name in row if name not in hidden))
        cells = [[f"{row['case']}, {row['server']}", *(show(row.get(name)) for name in names)] for row in rows]
        parts.append(table((scenario, *names), cells))
        parts += [f"{row['server']}: {', '.join(row['reasons'])}" for row in rows if row.get("reasons")]
    cells = [
        [bar["name"], show(bar["measured"]), f"{'>=' if bar['minimum'] else '<='} {bar['limit']:g}", verdict(bar)]
        for bar in report["bars"]
    ]
    if cells:
        parts.append(table(("wanted", "measured", "limit", ""), cells))
    parts += [f"{name}: not measured: {reason}" for name, reason in report["not_measured"].items()]
    return "\n\n".join(parts)


def show(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def verdict(bar: dict[str, Any]) -> str:
    return "ok" if bar["passed"] else "MISSED"


async def measure(scaling: Scaling) -> None:
    for round_number in range(scaling.options.rounds):
        scaling.round = round_number
        for scenario in map(SCENARIOS.__getitem__, scaling.options.scenarios):
            for server in scenario.servers:
                if server not in scaling.not_measured:
                    await measure_server(scaling, scenario, server)


async def measure_server(scaling: Scaling, scenario: Scenario, server: str) -> None:
    """Run a scenario with a server. If it is another router that does not start, note the reason."""
    try:
        await scenario.run(scaling, server)
    except NotMeasured as error:
        scaling.not_measured[server] = str(error)
        progress(f"{server}: not measured: {error}")


def read_options() -> argparse.Namespace:
    parser = new_parser("Measure a front of several servers under load and when they fail.", HELP)
    add = parser.add_argument
    add("scenarios", nargs="*", default=[], metavar="SCENARIO", help=f"{', '.join(SCENARIOS)} (default: all)")
    add("--rounds", type=integer(1, 1000), default=3, metavar="N", help="rounds of all scenarios (3)")
    add("--seconds", type=number(0.1, 3600), default=8.0, metavar="S", help="duration of loads that repeat (8)")
    add("--streams", type=integer(1, 10_000), default=200, metavar="N", help="streams of overhead (200)")
    add("--many-streams", type=integer(1, 10_000), default=2000, metavar="N", help="streams of streams (2000)")
    add("--peers", type=Path, default=PEERS, metavar="DIR", help="folder of the environments of peers.py")
    options = parser.parse_args()
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"SCENARIO must be one of {', '.join(SCENARIOS)}, not {unknown[0]}")
    options.scenarios = options.scenarios or list(SCENARIOS)
    files = 2 * options.many_streams + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))  # the servers inherit it
        except ValueError:
            parser.error(f"these streams require more open files than the limit of {hard} (ulimit -n)")
    return options


def main() -> int:
    options = read_options()
    scaling = Scaling(options)
    code = OK
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(measure(scaling))
    except KeyboardInterrupt:
        print("Interrupted: results so far.")
        code = INTERRUPTED
    except (RuntimeError, OSError, TimeoutError) as error:
        print(f"scaling.py: {error or 'A server exceeded its time limit.'}", file=sys.stderr)
        code = FAILED
    report = results(scaling)
    print(render(report))
    versions: dict[str, str] = {}
    for name in ROUTERS:
        versions |= {name: installed_versions(name, options.peers)[0].get(name, "not installed")}
    write_json(options, "scaling", report, interrupted=code == INTERRUPTED, hidden=("peers",), **versions)
    return code


if __name__ == "__main__":
    run_script(main)
