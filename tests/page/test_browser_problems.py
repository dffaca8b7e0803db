"""The tests of the page notice what a browser complains of."""

from __future__ import annotations

import pytest
from aiohttp import web

from tests.helpers import serving
from tests.page.conftest import Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])

BAD = """<!doctype html><title>Bad</title><link rel="icon" href="data:,">
<script src="missing.js"></script><script src="bad.js"></script>
<p style="color: red">no style may stand here</p><img src="https://example.org/x.png">"""


async def test_each_kind_of_trouble_is_noticed(visit: Visit, problems: list[str]) -> None:
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
        noticed = [problem for problem in problems if problem.startswith(beginning)]
        assert len(noticed) == 1, beginning
        problems.remove(noticed[0])
