"""``aiochatstream serve --devices``: a server process for each device."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import psutil
import pytest
from transformers import LlamaConfig

from aiochatstream.cli.device_options import command_of
from aiochatstream.cli.main import build_parser, main
from aiochatstream.cli.serve_options import check
from tests.cli.test_main import serve, url_when_ready
from tests.engines.transformers.checkpoints import save_model, save_sarashina_tokenizer
from tests.processes import Process, ask


def process_ids(front: Process) -> list[int]:
    """Return the ids of the servers that ``front`` has started."""
    return [int(pid) for pid in re.findall(r"Started the server of cpu-\d as process (\d+)", front.err)]


def options_of_server(*options: str) -> dict[str, object]:
    """Return the parsed options of the server of ``cuda:1``, which must be valid."""
    parser = build_parser()
    parsed = parser.parse_args(["serve", *options, "--devices", "cuda:0,cuda:1"])
    command = command_of(parsed, parsed.model[0] if parsed.model else None, 3, "cuda:1", Path("/folder/1.sock"))
    assert command[1:3] == ["-m", "aiochatstream"]
    child = parser.parse_args(command[3:])
    check(child)
    return vars(child)


def test_the_server_of_a_device_has_the_options_of_the_model_and_no_queue() -> None:
    options = options_of_server(
        *("folder", "--dtype", "float32", "--context-len", "256", "--temperature", "0", "--compile"),
        *("--chat-template-kwargs", '{"enable_thinking": false}'),
    )
    assert (options["model"], options["device"], options["dtype"]) == (["folder"], "cuda:1", "float32")
    assert (options["unix"], options["child"]) == (Path("/folder/1.sock"), True)
    assert (options["concurrency"], options["queue"]) == (3, 0)
    assert (options["context_len"], options["temperature"], options["compile"]) == (256, 0.0, True)
    assert options["chat_template_kwargs"] == {"enable_thinking": False}
    assert options["models"] is None


def test_options_without_a_value_are_absent() -> None:
    options = options_of_server()
    assert options["model"] == []
    assert options["compile"] is False
    assert (options["prompt"], options["context_len"]) == (None, None)
    assert "dtype" not in options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "cpu,"], "devices: must be devices such as cpu or cuda:0"),
        (["--devices", "cpu", "--device", "cpu"], "--devices cannot be used with --device and --device-map"),
        (["--devices", "cpu", "--record", "folder"], "--record cannot be used with --devices"),
        (["--devices", "cpu", "--mock", "echo"], "--devices cannot be used with --mock"),
        (["http://127.0.0.1:1", "--devices", "cpu"], "--devices cannot be used with URLs"),
    ],
)
def test_invalid_devices_are_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", *options]) == 2
    assert message in capsys.readouterr().err


def test_two_processes_answer_and_one_that_is_killed_is_replaced(tmp_path: Path) -> None:
    body = {"user_input": "What is the capital of Japan?"}
    folder = save_model(save_sarashina_tokenizer(tmp_path / "model"), LlamaConfig)
    options = ["--devices", "cpu,cpu", "--prompt", "plain", "--max-new-tokens", "8", "--temperature", "0"]
    with serve(tmp_path, str(folder), *options) as front:
        url = url_when_ready(front)
        answer = ask(f"{url}/chat_stream", body)
        assert answer.status == 200
        assert answer.text
        first, second = process_ids(front)
        os.kill(first, signal.SIGKILL)
        assert ask(f"{url}/chat_stream", body).text == answer.text
        front.wait_for(lambda: "Started the server" in front.err.partition("killed by SIGKILL")[2], "restart")
        assert front.end() == 0
        assert "Traceback" not in front.err
    assert not any(psutil.pid_exists(pid) for pid in {second, *process_ids(front)})


def test_a_model_that_no_process_can_load_is_an_error(tmp_path: Path) -> None:
    with serve(tmp_path, str(tmp_path / "nothing"), "--devices", "cpu") as front:
        assert front.wait_ended() == 1
        assert "The servers of all devices have ended" in front.err
        assert "nothing" in front.err
