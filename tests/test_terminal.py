"""Terminal output and Ctrl-C."""

from __future__ import annotations

import errno
import io
import logging
import signal
from pathlib import Path

import pytest

from aiochatstream.terminal import LogFormatter, default_ctrl_c, one_line, os_error_reason, write
from tests.processes import PYTHON, ROOT, START_PATIENCE, running


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "text", ["\x1b[2J", "\x1b]52;c;eA==\x07", "\x9b31m", "\x90q\x9c", "a\rb", "a\bb", "\x7f", "\0"]
)
def test_control_characters_are_removed_for_terminals_only(text: str) -> None:
    screen, file = Tty(), io.StringIO()
    write(f"日本語\t{text}", screen)
    write(f"日本語\t{text}", file)
    assert screen.getvalue().startswith("日本語\t")
    assert all(character.isprintable() or character in "\t\n" for character in screen.getvalue())
    assert file.getvalue() == f"日本語\t{text}\n"


def test_log_lines_contain_no_control_characters() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 1, "GET %s", ("/\x1b[2J\x9b31m",), None)
    assert LogFormatter("%(message)s").format(record) == "GET /[2J31m"


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_ctrl_c_during_the_import_of_transformers_ends_the_command_without_a_traceback(
    command: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING_FINDER)
    options = ["--port", "0"] if command == "serve" else []
    command_line = [PYTHON, "-m", "aiochatstream", command, *options]
    with running(command_line, tmp_path / "output", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as process:
        assert process.wait_ended(START_PATIENCE) == -signal.SIGINT
        assert process.err == ""


INTERRUPTING_FINDER = """
import os, signal, sys, time

class InterruptingFinder:
    def find_spec(self, name, *args):
        if name == "transformers":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

sys.meta_path.insert(0, InterruptingFinder())
"""


def test_the_handler_is_restored_and_an_ignored_signal_stays_ignored() -> None:
    before = signal.getsignal(signal.SIGINT)
    for handler, within in ((signal.default_int_handler, signal.SIG_DFL), (signal.SIG_IGN, signal.SIG_IGN)):
        signal.signal(signal.SIGINT, handler)
        try:
            with default_ctrl_c():
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
