"""Tests of the feedback file."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from aiochatstream import ChatStream, FeedbackFile
from tests.helpers import ClientOf, StartServer, echo


async def test_a_feedback_file_contains_a_line_for_each_rating_and_is_private(
    start: StartServer, client_of: ClientOf, tmp_path: Path
) -> None:
    path = tmp_path / "feedback.jsonl"
    client = client_of(await start(ChatStream(engine=echo, on_feedback=FeedbackFile(path))))
    for text in ("one", "二"):
        answer = await client.say(text)
        await client.rate(message_id=answer["message_id"], is_like=True, form_data={"line": "a\nb"})
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["target_message"] for line in lines] == ["one ", "二 "]
    assert lines[0]["form_data"] == {"line": "a\nb"}
    assert lines[0]["time"] <= lines[1]["time"]
    assert "二" in path.read_text("utf-8")
    assert path.stat().st_mode & 0o077 == 0


async def test_partially_written_feedback_is_a_500(start: StartServer, client_of: ClientOf, tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    client = client_of(await start(ChatStream(engine=echo, on_feedback=FeedbackFile(path))))
    answer = await client.say("one")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, unlimited[1]))  # simulates a full disk
    try:
        status, body = await client.rate(message_id=answer["message_id"], is_like=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert (status, body["success"]) == (500, False)
    assert path.stat().st_size == 10


async def test_a_full_feedback_file_is_a_503_and_is_logged_once(
    start: StartServer, client_of: ClientOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "feedback.jsonl"
    client = client_of(await start(ChatStream(engine=echo, on_feedback=FeedbackFile(path, max_bytes=3000))))
    answer = await client.say("one")
    statuses = [
        (await client.rate(message_id=answer["message_id"], form_data=[number, "x" * 500]))[0] for number in range(6)
    ]
    assert statuses == [200] * (count := statuses.count(200)) + [503] * (6 - count)
    assert count > 0
    assert path.stat().st_size <= 3000
    assert len([record for record in caplog.records if record.name.endswith("feedback")]) == 1
    path.unlink()
    assert (await client.rate(message_id=answer["message_id"], form_data=6))[0] == 200
