"""``python bench/browser.py``: what the chat page costs its reader, in a real browser."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from common import OK, WRONG_USE, Spread, parser, progress, run_script, table, whole, write_json
from playwright.async_api import Browser, BrowserContext, Page, Route, async_playwright
from servers import MARKDOWN, started

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
"""Turns of the conversations that are shown."""

SHOWN = """new Promise((done) => {
  const look = () => {
    if (document.querySelector(".turn:last-child .answer pre")) {
      requestAnimationFrame(() => setTimeout(() => done(performance.now()))); // once it is painted
    } else requestAnimationFrame(look);
  };
  look();
})"""

RESPONDED = "performance.getEntriesByType('resource').find((one) => /history/.test(one.name)).responseEnd"

LONG_MS = 50
TASKS = "disabled-by-default-devtools.timeline"

HELP = """\
Starts a server whose engine writes Markdown without a model (headings, lists, tables, code; 250 tokens a second), and
opens its page in headless Chromium on the same machine, --rounds times with a fresh profile.

figures, each the median of the rounds with the least and the most:
  prepaint_ms   first contentful paint: from the navigation until something stands on the page
  first_bytes      over the wire until the page is ready and nothing more is fetched: headers and compressed bodies
  again_bytes      the same, when it is opened again
  ..._requests     what it took
  answer_s         until the page shows the whole answer of --tokens tokens
  long_tasks       times that the page's thread was busy for 50 ms or more meanwhile, and could not react to its user
  longest_task_ms  the longest time that it was busy
  ..._cpu          the same by the CPU time that it had, without that which other processes of a busy machine took
  late_bytes       what the page fetched for showing the answer (the highlighter), beside the answer itself
  show_N_ms        from the end of the response with a history of N turns of Markdown until the newest is on the screen
  change_N_cpu_ms  CPU time of the page's thread for one more message and its answer of 20 tokens in that conversation

exit codes: 0 measured; 2 wrong use, or no chromium here; 130 Ctrl-C
"""


class Wire:
    """Counts what comes over the wire to one page."""

    def __init__(self) -> None:
        self.bytes = self.requests = 0
        self._answers: set[str] = set()

    async def watch(self, context: BrowserContext, page: Page) -> None:
        session = await context.new_cdp_session(page)
        session.on("Network.responseReceived", self._responded)
        session.on("Network.loadingFinished", self._finished)
        await session.send("Network.enable")

    def take(self) -> tuple[int, int]:
        """Bytes and requests since it was asked last."""
        told = self.bytes, self.requests
        self.bytes = self.requests = 0
        return told

    def _responded(self, event: dict[str, Any]) -> None:
        if event["response"]["mimeType"] == "text/event-stream":
            self._answers.add(event["requestId"])

    def _finished(self, event: dict[str, Any]) -> None:
        if event["requestId"] not in self._answers and event["encodedDataLength"]:
            self.bytes += int(event["encodedDataLength"])
            self.requests += 1


class Task(NamedTuple):
    """Something that a page's thread did in one go: milliseconds by the clock, and of the CPU."""

    ms: float
    cpu_ms: float


def busy(trace: dict[str, Any]) -> list[Task]:
    """What the threads that pages run on did, from Chromium's trace."""
    events = trace["traceEvents"]
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    return [
        Task(event["dur"] / 1000, event.get("tdur", 0) / 1000)
        for event in events
        if event["name"] == "RunTask" and "dur" in event and (event["pid"], event["tid"]) in threads
    ]


async def visit(browser: Browser, url: str) -> dict[str, float]:
    """One person: opens the page, opens it again, and has a message answered."""
    context = await browser.new_context(viewport={"width": 1280, "height": 800})
    page, wire = await context.new_page(), Wire()
    await wire.watch(context, page)
    await page.goto(url, wait_until="networkidle")
    paint = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    first_bytes, first_requests = wire.take()
    await page.goto(url, wait_until="networkidle")
    again_bytes, again_requests = wire.take()
    await browser.start_tracing(page=page, categories=["toplevel", "devtools.timeline", TASKS])
    begun = asyncio.get_running_loop().time()
    await page.locator("#message").fill("Write Markdown.")
    await page.keyboard.press("Enter")
    await page.locator(".turn[data-state=complete]").wait_for(timeout=ANSWER_MS)
    answer_s = asyncio.get_running_loop().time() - begun
    tasks = busy(json.loads(await browser.stop_tracing()))
    late_bytes, _ = wire.take()
    await context.close()
    return {
        "prepaint_ms": paint,
        "first_bytes": first_bytes,
        "first_requests": first_requests,
        "again_bytes": again_bytes,
        "again_requests": again_requests,
        "answer_s": answer_s,
        "long_tasks": sum(one.ms >= LONG_MS for one in tasks),
        "longest_task_ms": max(one.ms for one in tasks),
        "long_tasks_cpu": sum(one.cpu_ms >= LONG_MS for one in tasks),
        "longest_task_ms_cpu": max(one.cpu_ms for one in tasks),
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
    tasks = busy(json.loads(await browser.stop_tracing()))
    await context.close()
    return {f"show_{turns}_ms": shown, f"change_{turns}_cpu_ms": sum(one.cpu_ms for one in tasks)}


async def measure(options: argparse.Namespace, chromium: str) -> tuple[list[dict[str, float]], str]:
    """The figures of each round, and the browser's version."""
    rounds = []
    with (
        started("markdown", "--pieces", str(options.tokens)) as server,
        started("pieces", "--pieces", "20") as brief,
    ):
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            for number in range(options.rounds):
                progress(f"round {number + 1} of {options.rounds}", live=True)
                figures = await visit(browser, server.url)
                for turns in LENGTHS:
                    figures |= await revisit(browser, brief.url, turns)
                rounds.append(figures)
            version = browser.version
            await browser.close()
    return rounds, version


def rows(rounds: Sequence[dict[str, float]]) -> list[tuple[str, str]]:
    return [(name, Spread.of([one[name] for one in rounds]).show()) for name in rounds[0]]


def main() -> int:
    made = parser("What the chat page costs its reader, in a real browser.", HELP)
    made.add_argument("--rounds", type=whole(1, 100), default=5, help="people, one after the other (5)")
    made.add_argument("--tokens", type=whole(1, 100_000), default=2000, help="of the answer (2000)")
    options = made.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        print("browser.py: chromium is missing: apt-get install chromium", file=sys.stderr)
        return WRONG_USE
    rounds, version = asyncio.run(measure(options, chromium))
    print(table(("figure", "median (least-most)"), rows(rounds)))
    write_json(options, "browser", {"rounds": rounds}, interrupted=False, chromium=version)
    return OK


if __name__ == "__main__":
    run_script(main)
