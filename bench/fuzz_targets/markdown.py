"""Markdown in the chat page: random answers, complete and growing, rendered by the page's modules in Chromium.

Promises: no exception; no element in the DOM that runs scripts, loads resources or navigates; no letter or digit lost;
no quadratic time for long texts; the same result for a growing text as for the complete text.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import web
from playwright.async_api import async_playwright

from fuzz_targets import Findings, rounds, serving

PAGE = Path(__file__).parents[2] / "aiochatstream" / "page"

MARKS = (
    *"*_~`[]()<>!|#>-+=$\\&:;.,\"'{}^/@ \n",
    *[
        "**",
        "***",
        "~~",
        "```",
        "~~~",
        "$$",
        "\\[",
        "\\]",
        "\\(",
        "\\)",
        "![",
        "](",
        "](<",
        "[a]:",
        "[^1]",
        "<!--",
        "-->",
        "&amp;",
        "&#x41;",
        "]]>",
        "<![CDATA[",
        "<?",
    ],
    *("\n\n", "\n- ", "\n1. ", "\n> ", "\n    ", "\n```js\n", "\n```\n", "\n---\n", "\n===\n", "  \n", "\t", "- [ ] "),
    "\n| a | b |\n|---|---|\n",
    *["https://example.com/", "www.example.com", "a@example.com", "data:image/png;base64,AAAA", "javascript:alert(1)"],
    *("<script>", "</script>", "<img src=x onerror=alert(1)>", "<a href='javascript:x'>", "<svg/onload=x>"),
    *["<think>", "</think>", "<div", "<br>", "<pre>", "<code>", "</code>"],
)
WORDS = (
    *[
        "word",
        "5",
        "10",
        "x",
        "snake_case",
        "日本語",
        "「重要」",
        "です。",
        "（例）",
        "カタカナ",
        "、",
        "～",
        "중요",
        "입니다",
        "注意：",
        "“引号”",
        "𠮷",
        "👍🏽",
        "é",
        "$HOME",
    ],
    *("مرحبا", "שלום", "\u0301", "\u200d", "\u202e", "\u0000", "\ufffd", "\u3000", "\u00a0", "a" * 50),
)

LONG = 20_000
"""Characters of a text that repeats a short one."""

LONG_MS = 3_000
"""Maximum milliseconds for such a text. Quadratic time and a stack overflow take several times as long."""

HARNESS = Path(__file__).with_suffix(".html")


def fuzz(seconds: float, seed: int) -> Findings:
    """Render random texts for ``seconds``."""
    return asyncio.run(_fuzz(seconds, seed))


async def _fuzz(seconds: float, seed: int) -> Findings:
    findings = Findings()
    chromium = shutil.which("chromium")
    if chromium is None:
        print("markdown: chromium is missing: apt-get install chromium", file=sys.stderr)
        return findings
    app = web.Application()
    app.router.add_get("/harness.html", _harness)
    app.router.add_static("/", PAGE)
    async with serving(app) as port, async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--headless=new", "--no-sandbox", "--disable-gpu"]
        )
        page = await browser.new_page()
        await page.goto(f"http://127.0.0.1:{port}/harness.html")
        await page.locator("body[data-ready]").wait_for(state="attached")
        for number in rounds(seconds, seed):
            for text, cuts in _texts(random.Random(number)):  # noqa: S311 - not security-relevant
                findings.tried += 1
                result: dict[str, Any] = await page.evaluate("([text, cuts]) => check(text, cuts)", [text, cuts])
                if result["ms"] > LONG_MS:
                    result["found"].append(f"took {result['ms']:.0f} ms")
                if result["found"]:
                    findings.faults.append(f"seed {number}: {text[:300]!r} ({len(text)}), {result['found'][0]}"[:1500])
            if len(findings.faults) >= 20:
                break
        await browser.close()
    return findings


async def _harness(request: web.Request) -> web.FileResponse:
    return web.FileResponse(HARNESS)


def _texts(chance: random.Random) -> Iterator[tuple[str, list[int]]]:
    """Yield texts, with the lengths of their growing prefixes."""
    for _ in range(8):
        text = _mixed(chance, chance.randrange(1, 60))
        yield text, sorted(chance.sample(range(len(text)), min(len(text), 6)))
    piece = _mixed(chance, chance.randrange(1, 5))
    yield piece * (LONG // max(1, len(piece))), []
    opening, closing = chance.choice(MARKS), chance.choice(MARKS)
    yield opening * (LONG // 2 // len(opening)) + "x" + closing * (LONG // 2 // len(closing)), []


def _mixed(chance: random.Random, count: int) -> str:
    pick = (*MARKS, *WORDS, *WORDS, *string.ascii_lowercase[:3])
    return "".join(chance.choice(pick) for _ in range(count))
