"""``python bench/screenshots.py``: take the screenshots of the chat page in docs/screenshots."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp_session
from aiohttp import web
from browser import ARGUMENTS
from common import OK, ROOT, WRONG_USE, new_parser, progress, run_script
from playwright.async_api import Browser, Page, async_playwright, expect

from aiochatstream import ChatStream, GenerationParams, MemoryStorage

FOLDER = ROOT / "docs" / "screenshots"

HELP = """\
Starts a server without a model, opens its page in headless Chromium, and takes screenshots of its states: chatting,
queued, refused, the panels; light and dark, wide and narrow, English and Japanese.

exit codes: 0 taken; 2 wrong use, or chromium is missing; 130 Ctrl-C
"""

RAINBOW = """\
A rainbow is sunlight **taken apart by rain**. Each drop bends the light as it enters, \
reflects it at the back, and bends it again on the way out.

| colour | wavelength | angle |
|:--|--:|--:|
| red | 700 nm | 42.4° |
| green | 530 nm | 41.5° |
| violet | 400 nm | 40.6° |

So red is on the outside, and violet on the inside. You see one when

1. the sun is low, and *behind you*,
2. it rains in front of you.
"""

PRIMES = '''\
A sieve does it, and the slices make it quick:

```python
def primes_below(n: int) -> list[int]:
    """The primes below ``n``, by the sieve of Eratosthenes."""
    is_prime = [True] * n
    is_prime[:2] = [False] * min(n, 2)
    for i in range(2, int(n**0.5) + 1):
        if is_prime[i]:
            is_prime[i * i :: i] = [False] * len(range(i * i, n, i))
    return [i for i, prime in enumerate(is_prime) if prime]
```

- It crosses out the multiples of each prime, starting at `i * i`.
- A million takes about 0.1 s.
'''

NIJI = """\
虹は、**雨粒の中で太陽の光が分かれる**ことで見えます。

1. 光が雨粒に入るときに曲がります。
2. 雨粒の奥で反射します。
3. 出るときにもう一度曲がります。

曲がり方は色によって違います。

| 色 | 波長 | 角度 |
|:--|--:|--:|
| 赤 | 700 nm | 42.4° |
| 緑 | 530 nm | 41.5° |
| 紫 | 400 nm | 40.6° |

そのため、外側が赤、内側が紫になります。
"""


@dataclass
class ScreenshotEngine:
    """An engine function with fixed answers. Messages with "wait" or "slowly" pause it until ``resume`` is set."""

    resume: threading.Event

    def __call__(self, messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        message = messages[-1]["content"]
        answer = PRIMES if "primes" in message else NIJI if "虹" in message else RAINBOW
        if "wait" in message:
            self.resume.wait()
        for number, word in enumerate(re.findall(r"\S+\s*|\s+", answer)):
            if "slowly" in message and number == 60:
                self.resume.wait()
            yield word


@asynccontextmanager
async def serving(engine: ScreenshotEngine, **options: Any) -> AsyncIterator[str]:
    """Run a server with ``engine`` during the block, and yield its URL."""
    roles = {"developer": {"apis": {"allow": "all", "auth_method": "nothing", "enable_dev_tool": True}}}
    chat_stream = ChatStream(engine=engine, allow_system_prompt=True, client_roles=roles, **options)
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.add_endpoints(app)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        engine.resume.set()
        await runner.cleanup()


class Camera:
    """Opens the page as new users, and takes screenshots."""

    def __init__(self, browser: Browser, url: str, folder: Path) -> None:
        self._browser, self._url, self._folder = browser, url, folder

    async def visit(self, **options: Any) -> Page:
        context = await self._browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "locale": "en-GB", "reduced_motion": "reduce", **options}
        )
        page = await context.new_page()
        await page.goto(self._url, wait_until="networkidle")
        return page

    async def phone(self, **options: Any) -> Page:
        size = {"width": 390, "height": 780}
        return await self.visit(viewport=size, is_mobile=True, has_touch=True, device_scale_factor=1.5, **options)

    async def take(self, page: Page, name: str) -> None:
        progress(name, live=True)
        await page.wait_for_load_state("networkidle")
        await page.screenshot(path=self._folder / f"{name}.png", animations="disabled")


async def send(page: Page, text: str, *, complete: bool = True) -> None:
    await page.locator("#message").fill(text)
    await page.locator("#send").click()
    if complete:
        await expect(page.locator(".turn").last).to_have_attribute("data-state", "complete")


async def chatting(camera: Camera) -> None:
    for scheme in ("light", "dark"):
        page = await camera.visit(color_scheme=scheme)
        await send(page, "Why does a rainbow have its colours in that order?")
        await page.locator("#new-chat").click()
        await send(page, "A Python function for the primes below n, please.")
        await camera.take(page, f"desktop-{scheme}")
    await page.locator("#open-settings").click()
    await page.locator("#param-temperature").wait_for()
    await camera.take(page, "settings")


async def in_japanese(camera: Camera) -> None:
    await camera.take(await camera.visit(locale="ja-JP"), "welcome-ja")
    page = await camera.phone(locale="ja-JP")
    await send(page, "虹はどうして見えるのですか？")
    await camera.take(page, "phone-ja")


async def developer_panel(camera: Camera) -> None:
    page = await camera.visit(viewport={"width": 1440, "height": 860})
    await send(page, "Tell me slowly about the rainbow.", complete=False)
    await page.locator("#open-dev").click()
    await expect(page.locator("[data-role=events]")).to_contain_text("delta")
    await expect(page.locator("[data-role=prompt]")).to_contain_text("slowly")
    await camera.take(page, "developer")


async def refused(camera: Camera) -> None:
    """Take screenshots of a full server with one slot and one place in the queue."""
    users = [await camera.phone() for _ in range(2)] + [await camera.visit()]
    await send(users[0], "Please wait.", complete=False)
    await expect(users[0].locator(".dots")).to_be_visible()
    await send(users[1], "Is it my turn?", complete=False)
    await expect(users[1].locator("[data-role=queue]")).not_to_be_empty()
    await camera.take(users[1], "queue")
    await send(users[2], "Nothing that is typed is ever lost.", complete=False)
    await expect(users[2].locator("[data-role=countdown]")).not_to_be_empty()
    await camera.take(users[2], "busy")
    await users[2].context.set_offline(True)
    await users[2].locator(".refusal button").first.click()
    await expect(users[2].locator("[data-code=unreachable]")).to_be_visible()
    await camera.take(users[2], "unreachable")


async def take_all(chromium: str, folder: Path) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for states in ((chatting, in_japanese), (developer_panel,), (refused,)):
            limits = {"num_of_concurrent_executions": 1, "max_queue_size": 1} if refused in states else {}
            engine = ScreenshotEngine(threading.Event())
            async with serving(engine, params=GenerationParams(max_new_tokens=1000), **limits) as url:
                for state in states:
                    await state(Camera(browser, url, folder))
                engine.resume.set()
        await browser.close()


def main() -> int:
    new_parser("Take the screenshots of the chat page in docs/screenshots.", HELP).parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        print("screenshots.py: chromium is missing: apt-get install chromium fonts-noto-cjk", file=sys.stderr)
        return WRONG_USE
    FOLDER.mkdir(exist_ok=True)
    asyncio.run(take_all(chromium, FOLDER))
    return OK


if __name__ == "__main__":
    run_script(main)
