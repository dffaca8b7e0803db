"""The page as a person uses it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from playwright.async_api import Locator, Page, expect

from aiochatstream import GenerationParams


def repeats(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
    """An engine that answers with the newest message, in small pieces that respect nothing."""
    text = messages[-1]["content"]
    for start in range(0, len(text), 7):
        yield text[start : start + 7]


class PiecewiseEngine:
    """An engine function that yields the next piece whenever the test allows it."""

    def __init__(self, *pieces: str) -> None:
        self._pieces = iter(pieces)
        self._permits = threading.Semaphore(0)

    def __call__(self, messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        for piece in self._pieces:
            self._permits.acquire()
            yield piece

    def next(self, count: int = 1) -> None:
        self._permits.release(count)


class Chat:
    """What stands on a page, by its hooks, which are the same in each language."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.message = page.locator("#message")
        self.send_button = page.locator("#send")
        self.stop_button = page.locator("#stop")
        self.turns = page.locator("#turns > .turn")
        self.refusal = page.locator(".refusal")
        self.countdown = page.locator("[data-role=countdown]")
        self.unsent = page.locator("[data-role=unsent]")

    async def write(self, text: str) -> None:
        await self.message.fill(text)

    async def send(self, text: str) -> None:
        """Write and send; it may be refused."""
        await self.write(text)
        await self.message.press("Enter")

    async def ask(self, text: str) -> None:
        """Send, and wait for the end of the answer."""
        count = await self.turns.count()
        await self.send(text)
        await self.see_state("complete", count)

    def turn(self, number: int = -1) -> Locator:
        return self.turns.nth(number)

    def said(self, number: int = -1) -> Locator:
        return self.turn(number).locator("[data-role=message]")

    def answer(self, number: int = -1) -> Locator:
        return self.turn(number).locator("[data-role=answer]")

    def button(self, action: str, number: int = -1) -> Locator:
        return self.turn(number).locator(f"[data-action={action}]")

    async def act(self, action: str, number: int = -1) -> None:
        await self.button(action, number).click()

    async def confirm(self) -> None:
        await self.page.locator("#confirm-yes").click()

    async def see_state(self, state: str, number: int = -1) -> None:
        await expect(self.turn(number)).to_have_attribute("data-state", state)

    async def see_turns(self, *texts: str) -> None:
        """Messages and answers, in turn, are all that stands there."""
        await expect(self.turns).to_have_count(len(texts) // 2)
        for number, (said, answer) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
            await expect(self.said(number)).to_have_text(said)
            await expect(self.answer(number)).to_have_text(answer)
