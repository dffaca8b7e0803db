"""Page object of the chat page."""

from __future__ import annotations

from playwright.async_api import Locator, Page, expect


class ChatPage:
    """The chat page of a user. Elements are located independently of the language."""

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
        """Send a message; the server may refuse it."""
        await self.write(text)
        await self.message.press("Enter")

    async def ask(self, text: str) -> None:
        """Send a message and wait until its answer is complete."""
        count = await self.turns.count()
        await self.send(text)
        await self.expect_state("complete", count)

    def turn(self, number: int = -1) -> Locator:
        return self.turns.nth(number)

    def user_message(self, number: int = -1) -> Locator:
        return self.turn(number).locator("[data-role=message]")

    def answer(self, number: int = -1) -> Locator:
        return self.turn(number).locator("[data-role=answer]")

    def thought(self, number: int = -1) -> Locator:
        """The element that folds the thoughts."""
        return self.turn(number).locator("details.thought")

    def thought_line(self, number: int = -1) -> Locator:
        """The line that is always visible."""
        return self.thought(number).locator("summary")

    def thought_text(self, number: int = -1) -> Locator:
        return self.turn(number).locator("[data-role=thought]")

    def button(self, action: str, number: int = -1) -> Locator:
        return self.turn(number).locator(f"[data-action={action}]")

    async def click(self, action: str, number: int = -1) -> None:
        await self.button(action, number).click()

    async def confirm(self) -> None:
        await self.page.locator("#confirm-yes").click()

    async def expect_state(self, state: str, number: int = -1) -> None:
        await expect(self.turn(number)).to_have_attribute("data-state", state)

    async def expect_turns(self, *texts: str) -> None:
        """Expect exactly these turns; ``texts`` alternates messages and answers."""
        await expect(self.turns).to_have_count(len(texts) // 2)
        for number, (message, answer) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
            await expect(self.user_message(number)).to_have_text(message)
            await expect(self.answer(number)).to_have_text(answer)
