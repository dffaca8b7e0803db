"""Problems that the browser reports are recorded, so that they fail a test."""

from __future__ import annotations

import pytest
from aiohttp import web

from tests.helpers import serving
from tests.page.fixtures import Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])

BAD = """<!doctype html><title>Bad</title><link rel="icon" href="data:,">
<script src="missing.js"></script><script src="bad.js"></script>
<p style="color: red">inline style</p><img src="https://example.org/x.png">"""


async def test_all_kinds_of_problems_are_recorded(visit: Visit, problems: list[str]) -> None:
    async def page(request: web.Request) -> web.Response:
        policy = {"Content-Security-Policy": "default-src 'none'; script-src 'self'; img-src *; connect-src 'self'"}
        return web.Response(text=BAD, content_type="text/html", headers=policy)

    async def script(request: web.Request) -> web.Response:
        return web.Response(text="console.error('oh'); fetch('nothing'); throw 5", content_type="text/javascript")

    app = web.Application()
    app.add_routes([web.get("/", page), web.get("/bad.js", script)])
    async with serving(app) as url:
        await (await visit(url)).wait_for_load_state("networkidle")
    for beginning in (
        "404 for",
        "request to https://example.org/x.png",
        "console error: oh",
        "console error: Loading the image 'data:,' violates",
        "console error: Applying inline style violates",
        "uncaught: 5",
    ):
        recorded = [problem for problem in problems if problem.startswith(beginning)]
        assert len(recorded) == 1, beginning
        problems.remove(recorded[0])
