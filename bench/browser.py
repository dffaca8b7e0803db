"""``python bench/browser.py``: measure the cost of the chat page in a real browser."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from common import OK, WRONG_USE, Spread, integer, new_parser, progress, run_script, table, write_json
from playwright.async_api import Browser, BrowserContext, Page, Route, async_playwright
from servers import MARKDOWN, running_server

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

ANSWER_MS = 600_000

LENGTHS = (10, 500, 1500)
"""Numbers of turns of the conversations."""

SHOWN = """new Promise((done) => {
  const look = () => {
    if (document.querySelector(".turn:last-child .answer pre")) {
      requestAnimationFrame(() => setTimeout(() => done(performance.now()))); // after painting
    } else requestAnimationFrame(look);
  };
  look();
})"""

RESPONDED = "performance.getEntriesByType('resource').find((entry) => /history/.test(entry.name)).responseEnd"

LONG_MS = 50
TASKS = "disabled-by-default-devtools.timeline"

HELP = """\
Starts a server whose engine generates Markdown without a model (headings, lists, tables, code; 250 tokens per second),
and opens its page in headless Chromium on the same machine, --rounds times with a new profile.

figures, each the median of the rounds with minimum and maximum:
  first_paint_ms   first contentful paint: from the navigation until the first content is visible
  first_bytes      bytes transferred until the page is ready and fetches nothing more: headers and compressed bodies
  again_bytes      the same on the second visit
  ..._requests     number of requests for these bytes
  answer_s         seconds until the page shows the complete answer of --tokens tokens
  long_tasks       tasks of the page's thread during the answer that blocked it for 50 ms or more
  longest_task_ms  duration of the longest task
  ..._cpu          the same in CPU time, without the effect of other processes on a busy machine
  late_bytes       bytes loaded for the answer (the highlighter), besides the answer
  show_N_ms        from the end of the response with a history of N turns of Markdown until the last turn is visible
  change_N_cpu_ms  CPU time of the page's thread for one more message and its answer of 20 tokens in that conversation

exit codes: 0 measured; 2 wrong use, or chromium is missing; 130 Ctrl-C
"""


class TrafficCounter:
    """Counter of the requests and bytes of a page, except answers."""

    def __init__(self) -> None:
        self.bytes = self.requests = 0
        self._answers: set[str] = set()

    async def attach(self, context: BrowserContext, page: Page) -> None:
        session = await context.new_cdp_session(page)
        session.on("Network.responseReceived", self._on_response)
        session.on("Network.loadingFinished", self._on_finished)
        await session.send("Network.enable")

    def take(self) -> tuple[int, int]:
        """Return bytes and requests since the last call."""
        counts = self.bytes, self.requests
        self.bytes = self.requests = 0
        return counts

    def _on_response(self, event: dict[str, Any]) -> None:
        if event["response"]["mimeType"] == "text/event-stream":
            self._answers.add(event["requestId"])

    def _on_finished(self, event: dict[str, Any]) -> None:
        if event["requestId"] not in self._answers and event["encodedDataLength"]:
            self.bytes += int(event["encodedDataLength"])
            self.requests += 1


class PageTask(NamedTuple):
    """A task of a page's thread: milliseconds of wall-clock time and of CPU time."""

    ms: float
    cpu_ms: float


def page_tasks(trace: dict[str, Any]) -> list[PageTask]:
    """Return the tasks of the pages' threads in a trace of Chromium."""
    events = trace["traceEvents"]
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    return [
        PageTask(event["dur"] / 1000, event.get("tdur", 0) / 1000)
        for event in events
        if event["name"] == "RunTask" and "dur" in event and (event["pid"], event["tid"]) in threads
    ]


async def visit(browser: Browser, url: str) -> dict[str, float]:
    """Open the page as a new user, open it again, and send a message."""
    context = await browser.new_context(viewport={"width": 1280, "height": 800})
    page, traffic = await context.new_page(), TrafficCounter()
    await traffic.attach(context, page)
    await page.goto(url, wait_until="networkidle")
    paint = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    first_bytes, first_requests = traffic.take()
    await page.goto(url, wait_until="networkidle")
    again_bytes, again_requests = traffic.take()
    await browser.start_tracing(page=page, categories=["toplevel", "devtools.timeline", TASKS])
    start = asyncio.get_running_loop().time()
    await page.locator("#message").fill("Write Markdown.")
    await page.keyboard.press("Enter")
    await page.locator(".turn[data-state=complete]").wait_for(timeout=ANSWER_MS)
    answer_s = asyncio.get_running_loop().time() - start
    tasks = page_tasks(json.loads(await browser.stop_tracing()))
    late_bytes, _ = traffic.take()
    await context.close()
    return {
        "first_paint_ms": paint,
        "first_bytes": first_bytes,
        "first_requests": first_requests,
        "again_bytes": again_bytes,
        "again_requests": again_requests,
        "answer_s": answer_s,
        "long_tasks": sum(task.ms >= LONG_MS for task in tasks),
        "longest_task_ms": max(task.ms for task in tasks),
        "long_tasks_cpu": sum(task.cpu_ms >= LONG_MS for task in tasks),
        "longest_task_ms_cpu": max(task.cpu_ms for task in tasks),
        "late_bytes": late_bytes,
    }


async def revisit(browser: Browser, url: str, turns: int) -> dict[str, float]:
    """Show a conversation of ``turns`` turns, and send one more message in it."""
    context = await browser.new_context(viewport={"width": 1280, "height": 800})
    page = await context.new_page()
    messages = [
        message
        for number in range(turns)
        for message in (
            {"role": "user", "content": f"Message {number}"},
            {"role": "assistant", "content": MARKDOWN, "message_id": str(number)},
        )
    ]
    history = json.dumps({"turn": 0, "messages": messages})

    async def respond(route: Route) -> None:
        await route.fulfill(content_type="application/json", body=history)

    await page.route("**/history?*", respond)
    await page.goto(url, wait_until="commit")
    shown = await page.evaluate(SHOWN) - await page.evaluate(RESPONDED)
    await page.wait_for_load_state("networkidle")
    await browser.start_tracing(page=page, categories=["toplevel", "devtools.timeline", TASKS])
    await page.locator("#message").fill("One more.")
    await page.keyboard.press("Enter")
    await page.locator(f".turn:nth-child({turns + 1})[data-state=complete]").wait_for(timeout=ANSWER_MS)
    tasks = page_tasks(json.loads(await browser.stop_tracing()))
    await context.close()
    return {f"show_{turns}_ms": shown, f"change_{turns}_cpu_ms": sum(task.cpu_ms for task in tasks)}


async def measure(options: argparse.Namespace, chromium: str) -> tuple[list[dict[str, float]], str]:
    """Return the figures of each round, and the version of the browser."""
    rounds = []
    with (
        running_server("markdown", "--chunks", str(options.tokens)) as server,
        running_server("chunks", "--chunks", "20") as short_answers,
    ):
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            for number in range(options.rounds):
                progress(f"round {number + 1} of {options.rounds}", live=True)
                figures = await visit(browser, server.url)
                for turns in LENGTHS:
                    figures |= await revisit(browser, short_answers.url, turns)
                rounds.append(figures)
            version = browser.version
            await browser.close()
    return rounds, version


def rows(rounds: Sequence[dict[str, float]]) -> list[tuple[str, str]]:
    return [(name, Spread.of([figures[name] for figures in rounds]).show()) for name in rounds[0]]


def main() -> int:
    parser = new_parser("Measure the cost of the chat page in a real browser.", HELP)
    parser.add_argument("--rounds", type=integer(1, 100), default=5, help="number of users, one after another (5)")
    parser.add_argument("--tokens", type=integer(1, 100_000), default=2000, help="tokens of the answer (2000)")
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        print("browser.py: chromium is missing: apt-get install chromium", file=sys.stderr)
        return WRONG_USE
    rounds, version = asyncio.run(measure(options, chromium))
    print(table(("figure", "median (min-max)"), rows(rounds)))
    write_json(options, "browser", {"rounds": rounds}, interrupted=False, chromium=version)
    return OK


if __name__ == "__main__":
    run_script(main)
