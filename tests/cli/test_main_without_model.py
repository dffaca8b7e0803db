"""``aiochatstream serve`` without a model: ``--mock``, ``--record`` and ``--replay``."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import aiohttp
import pytest
from cryptography.fernet import Fernet
from openai import OpenAI

from aiochatstream.cli.main import main
from tests.cli.test_main import serve, url_when_ready
from tests.helpers import Client
from tests.processes import ask
from tests.redis_server import RedisServer

Start = tuple[list[str], dict[str, str]]
"""Options and environment of a server."""


def rows_of(out: str) -> dict[str, str]:
    return dict(re.findall(r"^  (\w+) {2,}(.+)$", out, re.MULTILINE))


def test_another_process_replays_recorded_mock_answers(tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    body = {"user_input": "Say 東京 to me."}
    with serve(tmp_path / "mock", "--mock", "echo", "--record", str(folder)) as process:
        url = url_when_ready(process)
        answer = ask(f"{url}/chat_stream", body)
        assert (answer.status, answer.text) == (200, "Say 東京 to me.")
        assert "echo" in rows_of(process.out)["model"]
        assert str(folder) in rows_of(process.out)["recording"]
        assert "device" not in rows_of(process.out)
        assert "Loading" not in process.out
        assert process.end() == 0
    with serve(tmp_path / "replay", "--replay", str(folder)) as process:
        url = url_when_ready(process)
        assert ask(f"{url}/chat_stream", body).text == answer.text
        unknown = ask(f"{url}/chat_stream", {"user_input": "Say something else."})
        assert (unknown.status, unknown.json["error"]) == (404, "no_recording")
        assert rows_of(process.out)["model"] == f"none; 1 recorded answers in {folder}"
        assert process.end() == 0
        assert "Traceback" not in process.err


def test_answers_of_the_small_model_are_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    with serve(tmp_path, "--record", str(folder), "--max-new-tokens", "4") as process:
        url = url_when_ready(process)
        assert "device" in rows_of(process.out)
        assert str(folder) in rows_of(process.out)["recording"]
        assert ask(f"{url}/chat_stream", {"user_input": "Hello"}).status == 200
        assert len(list(folder.iterdir())) == 1


def test_openais_api_requires_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key\n")
    for options, env in ((["--api-key-file", str(file)], {}), ([], {"AIOCHATSTREAM_API_KEYS": "a-key another"})):
        with serve(tmp_path / str(len(env)), "--mock", "echo", *options, env=env) as process:
            base = f"{url_when_ready(process)}/v1"
            assert f"OpenAI API   {base}" in process.out
            assert ask(f"{base}/models").json["error"]["code"] == "invalid_api_key"
            unknown = ask(f"{base}/embeddings", {})
            assert (unknown.status, unknown.json["error"]["code"]) == (404, "not_found")
            with OpenAI(base_url=base, api_key="a-key") as client:
                assert [model.id for model in client.models.list()] == ["mock-echo"]
                answer = client.responses.create(model="mock-echo", input="Say 東京.")
                assert answer.output_text == "Say 東京."
            assert process.end() == 0
            assert "a-key" not in process.output


def test_a_key_file_without_a_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    assert main(["serve", "--mock", "echo", "--port", "0", "--api-key-file", str(file)]) == 2
    assert "must contain at least one key" in capsys.readouterr().err


def test_a_variable_without_a_key_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for empty in ("", " \n"):
        monkeypatch.setenv("AIOCHATSTREAM_API_KEYS", empty)
        assert main(["serve", "--mock", "echo", "--port", "0"]) == 2
        assert "AIOCHATSTREAM_API_KEYS: must contain at least one key" in capsys.readouterr().err


async def talk(url: str, text: str, jar: aiohttp.CookieJar) -> list[str]:
    """Send ``text`` and return all texts of the conversation."""
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        client = Client(session, url)
        await client.say(text)
        return await client.texts()


async def with_restart(folder: Path, storage: str, *starts: Start) -> list[str]:
    """Return the texts of a browser's conversation after it has used several servers in turn.

    :param starts: one for each server.
    """
    jar = aiohttp.CookieJar(unsafe=True)
    for at, (options, env) in enumerate(starts):
        with serve(folder / str(at), "--mock", "echo", "--session", storage, *options, env=env) as process:
            texts = await talk(url_when_ready(process), str(at), jar)
            assert process.end() == 0
            assert "Traceback" not in process.err
    return texts


def test_conversations_in_redis_continue_after_a_restart(tmp_path: Path, redis_server: RedisServer) -> None:
    starts: tuple[Start, ...] = (["--redis", redis_server.url], {}), ([], {"REDIS_URL": redis_server.url})
    assert asyncio.run(with_restart(tmp_path, "redis", *starts)) == ["0", "0", "1", "1"]


def test_conversations_in_cookies_continue_after_a_restart_with_a_new_and_the_old_key(tmp_path: Path) -> None:
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    file = tmp_path / "keys"
    file.write_text(f"{new}\n{old}\n")
    starts: tuple[Start, ...] = ([], {"AIOCHATSTREAM_SECRET_KEY": old}), (["--secret-key-file", str(file)], {})
    assert asyncio.run(with_restart(tmp_path, "cookie", *starts)) == ["0", "0", "1", "1"]


def test_a_temporary_key_is_logged_and_not_used_again(tmp_path: Path) -> None:
    with serve(tmp_path, "--mock", "echo", "--session", "cookie", "--dev") as process:
        url_when_ready(process)
        assert "--dev: using a temporary key for cookies" in process.err
        assert process.end() == 0
    assert asyncio.run(with_restart(tmp_path, "cookie", (["--dev"], {}), (["--dev"], {}))) == ["1", "1"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--mock echo some/model", "MODEL cannot be used with --mock"),
        ("--replay {folder} some/model", "MODEL cannot be used with --replay"),
        ("--mock echo --replay {folder}", "--replay cannot be used with --mock"),
        ("--record {folder}/new --replay {folder}", "--record cannot be used with --replay"),
        ("--mock long --device cpu", "--device cannot be used with --mock"),
        ("--mock long --redis redis://127.0.0.1", "--redis requires --session redis"),
        ("--mock long --session redis", "--session redis requires --redis URL, or REDIS_URL"),
        ("--mock long --session redis --redis http://127.0.0.1", "Redis URL must specify"),
        ("--mock long --dtype float32", "--dtype cannot be used with --mock"),
        ("--mock long --device-map auto", "--device-map cannot be used with --mock"),
        ("--mock long --trust-remote-code", "--trust-remote-code cannot be used with --mock"),
        ("--replay {folder} --adapter lora", "--adapter cannot be used with --replay"),
        ("--replay {folder} --compile", "--compile cannot be used with --replay"),
    ],
)
def test_contradicting_options_have_exit_code_2_and_one_sentence(
    options: str,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert main(["serve", "--port", "0", *options.format(folder=tmp_path).split()]) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(f"aiochatstream: {sentence}.*\n", printed.err)
    assert "Ready" not in printed.out
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_type_of_mock_answers_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--mock", "square"])
    assert "argument --mock: invalid choice: 'square'" in capsys.readouterr().err


def test_a_stalled_upload_does_not_delay_the_shutdown_and_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    with serve(tmp_path, "--mock", "echo") as process:
        address = ("127.0.0.1", int(url_when_ready(process).rsplit(":", 1)[1]))
        head = b"POST /chat_stream HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
        with socket.create_connection(address) as stalled, socket.create_connection(address) as encoded:
            stalled.sendall(head + b"\r\n{")
            encoded.sendall(head + b"Content-Encoding: br\r\n\r\n123456789")
            answer = encoded.recv(9999)
            assert b" 415 " in answer.splitlines()[0]
            assert b'{"error":"unsupported_media_type"' in answer
            assert process.end() == 0
        assert "Traceback" not in process.err
