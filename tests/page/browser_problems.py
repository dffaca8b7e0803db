"""Notes whatever a browser complains of, and each request that leaves the origin."""

from __future__ import annotations

from urllib.parse import urlsplit

from playwright.async_api import BrowserContext, ConsoleMessage, Request, Response, WebError


def watch(context: BrowserContext, url: str, problems: list[str]) -> None:
    """Add to ``problems`` what goes wrong in the pages of ``context``, which all are of the origin of ``url``."""
    origin = urlsplit(url)[:2]

    def on_console(message: ConsoleMessage) -> None:
        # that fetch got an error status, Chromium says itself; whether it was to be is the test's affair
        of_fetch = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not of_fetch:
            problems.append(f"console {message.type}: {message.text}")

    def on_error(error: WebError) -> None:
        problems.append(f"uncaught: {error.error}")

    def on_request(request: Request) -> None:
        if not request.url.startswith(("data:", "blob:")) and urlsplit(request.url)[:2] != origin:
            problems.append(f"request to {request.url}")

    def on_response(response: Response) -> None:
        if response.status >= 400 and response.request.resource_type != "fetch":
            problems.append(f"{response.status} for {response.url}")

    context.on("console", on_console)
    context.on("weberror", on_error)
    context.on("request", on_request)
    context.on("response", on_response)
