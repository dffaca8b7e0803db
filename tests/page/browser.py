"""Options of the browser, and a record of its problems: errors, warnings, and requests to other origins."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from playwright.async_api import BrowserContext, ConsoleMessage, Request, Response, WebError

from tests.nginx_server import NAME

ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",  # Chromium's sandbox requires rights that containers lack
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {NAME} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]

TIMEOUT_MS = 30_000
"""Milliseconds to wait for an expected state of the page."""


def record_problems(context: BrowserContext, url: str, problems: list[str]) -> Callable[[], None]:
    """Add the problems of all pages of ``context`` to ``problems``; the pages must have the origin of ``url``.

    Return a function that ends the recording.
    """
    origin = urlsplit(url)[:2]

    def on_console(message: ConsoleMessage) -> None:
        # Chromium reports each error status of a fetch; tests expect some of them
        failed_fetch = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not failed_fetch:
            problems.append(f"console {message.type}: {message.text}")

    def on_error(error: WebError) -> None:
        problems.append(f"uncaught: {error.error}")

    def on_request(request: Request) -> None:
        if not request.url.startswith(("data:", "blob:")) and urlsplit(request.url)[:2] != origin:
            problems.append(f"request to {request.url}")

    def on_response(response: Response) -> None:
        if response.status >= 400 and response.request.resource_type != "fetch":
            problems.append(f"{response.status} for {response.url}")

    listeners = {"console": on_console, "weberror": on_error, "request": on_request, "response": on_response}
    for event, listener in listeners.items():
        context.on(event, listener)  # type: ignore[call-overload]

    def end() -> None:
        for event, listener in listeners.items():
            context.remove_listener(event, listener)

    return end
