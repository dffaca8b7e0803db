"""Text on its way to a terminal."""

from __future__ import annotations

import io
import logging

import pytest

from aiochatstream.terminal import LogFormatter, write


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("text", ["\x1b[2J", "\x1b]52;c;eA==\x07", "\x9b31m", "\x90q\x9c", "a\rb", "a\bb", "\x7f", "\0"])
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
