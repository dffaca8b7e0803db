"""The page through nginx, with the lines of docs/deployment.md, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream, MemoryStorage
from tests.nginx_server import NAME, running_nginx
from tests.page.chat_page import Chat
from tests.page.conftest import Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


@pytest.mark.parametrize("kind", ["HTTP", "HTTPS"])
async def test_people_talk_by_the_name_of_the_server_and_find_their_conversation_after_a_reload(
    start: Any, visit: Visit, problems: list[str], stepper: Any, tmp_path: Path, kind: str
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(engine=engine, allowed_hosts=[NAME], max_new_tokens=6), MemoryStorage(secure=kind == "HTTPS")
    )
    with running_nginx(kind, tmp_path / "nginx", server.url) as nginx:
        chat = Chat(await visit(nginx.url, ignore_https_errors=True))
        await chat.send("Count")
        engine.allow(3)
        await expect(chat.answer()).to_have_text("1 2 3")
        engine.allow(3)
        await expect(chat.answer()).to_have_text("1 2 3 4 5 6")
        await chat.page.reload()
        await expect(chat.answer()).to_have_text("1 2 3 4 5 6")
        if kind == "HTTP":  # Chromium's word on a header that counts over HTTPS
            problems[:] = [problem for problem in problems if "Cross-Origin-Opener-Policy" not in problem]
