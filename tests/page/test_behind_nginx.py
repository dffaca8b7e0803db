"""The page behind nginx, configured as in docs/deployment.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream, GenerationParams, MemoryStorage
from tests.nginx_server import NAME, running_nginx
from tests.page.chat_page import ChatPage
from tests.page.fixtures import MakeStepper, StartServer, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


@pytest.mark.parametrize("kind", ["HTTP", "HTTPS"])
async def test_answers_stream_through_nginx_and_survive_a_reload(
    start: StartServer, visit: Visit, problems: list[str], stepper: MakeStepper, tmp_path: Path, kind: str
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(engine=engine, allowed_hosts=[NAME], params=GenerationParams(max_new_tokens=6)),
        MemoryStorage(secure=kind == "HTTPS"),
    )
    with running_nginx(kind, tmp_path / "nginx", server.url) as nginx:
        chat = ChatPage(await visit(nginx.url, ignore_https_errors=True))
        await chat.send("Count")
        engine.allow(3)
        await expect(chat.answer()).to_have_text("1 2 3")
        engine.allow(3)
        await expect(chat.answer()).to_have_text("1 2 3 4 5 6")
        await chat.page.reload()
        await expect(chat.answer()).to_have_text("1 2 3 4 5 6")
        if kind == "HTTP":  # Chromium warns that the header requires HTTPS
            problems[:] = [problem for problem in problems if "Cross-Origin-Opener-Policy" not in problem]
