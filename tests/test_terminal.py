"""Text on its way to a terminal."""

from __future__ import annotations

import errno
import io
import logging
import signal
from pathlib import Path

import pytest

from aiochatstream.terminal import LogFormatter, ctrl_c_ends_at_once, one_line, os_error_reason, write
from tests.processes import PYTHON, ROOT, START_PATIENCE, running


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "text", ["\x1b[2J", "\x1b]52;c;eA==\x07", "\x9b31m", "\x90q\x9c", "a\rb", "a\bb", "\x7f", "\0"]
)
def test_a_terminal_gets_no_control_characters_and_a_file_gets_all(text: str) -> None:
    screen, file = Tty(), io.StringIO()
    write(f"日本語\t{text}", screen)
    write(f"日本語\t{text}", file)
    assert screen.getvalue().startswith("日本語\t")
    assert all(character.isprintable() or character in "\t\n" for character in screen.getvalue())
    assert file.getvalue() == f"日本語\t{text}\n"


def test_a_log_line_holds_no_control_characters() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 1, "GET %s", ("/\x1b[2J\x9b31m",), None)
    assert LogFormatter("%(message)s").format(record) == "GET /[2J31m"


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_ctrl_c_while_transformers_is_imported_ends_it_without_a_traceback(command: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(PRESSES_CTRL_C)
    options = ["--port", "0"] if command == "serve" else []
    command_line = [PYTHON, "-m", "aiochatstream", command, *options]
    with running(command_line, tmp_path / "output", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as process:
        assert process.wait_ended(START_PATIENCE) == -signal.SIGINT
        assert process.err == ""


PRESSES_CTRL_C = """
import os, signal, sys, time

class Presses:
    def find_spec(self, name, *args):
        if name == "transformers":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

sys.meta_path.insert(0, Presses())
"""


def test_ctrl_c_is_as_before_after_the_block_and_stays_ignored_in_the_background() -> None:
    before = signal.getsignal(signal.SIGINT)
    for handler, within in ((signal.default_int_handler, signal.SIG_DFL), (signal.SIG_IGN, signal.SIG_IGN)):
        signal.signal(signal.SIGINT, handler)
        try:
            with ctrl_c_ends_at_once():
                assert signal.getsignal(signal.SIGINT) == within
            assert signal.getsignal(signal.SIGINT) == handler
        finally:
            signal.signal(signal.SIGINT, before)


def test_one_line_collapses_whitespace_and_truncates() -> None:
    assert one_line(" a\n\tb  c ") == "a b c"
    assert one_line("a" * 30, 10) == "aaaaaaa..."
    assert one_line("a" * 10, 10) == "a" * 10


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)"), "Connection refused"),
        (OSError(-2, "Name or service not known"), "Name or service not known"),
        (OSError("broken"), "broken"),
    ],
)
def test_the_reason_of_an_os_error_names_no_address(error: OSError, reason: str) -> None:
    assert os_error_reason(error) == reason
