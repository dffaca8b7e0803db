"""LoadTime."""

from __future__ import annotations

import logging

import pytest

from aiochatstream import LoadTime
from tests.console.terminal import terminal
from tests.processes import PYTHON


def test_the_log_has_two_lines_and_the_result_is_returned(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert LoadTime(name="Loading the model", fn=lambda: 42)() == 42
    before, after = caplog.messages
    assert before == "Loading the model ..."
    assert after.startswith("Loading the model: 0.")


def test_errors_of_the_function_are_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        LoadTime(name="Loading", fn=lambda: 1 // 0)()


def output_of(fn: str) -> str:
    """Return the terminal output of a program that loads with ``fn``."""
    code = f"""
import logging, sys
from aiochatstream import LoadTime
logging.basicConfig(format="%(message)s")
out, err = sys.stdout, sys.stderr

def fn():
    sys.__stdin__.readline()
    {fn}
    return "loaded"

print(LoadTime(name="Loading [the] 模型", fn=fn)())
assert (sys.stdout, sys.stderr, logging.root.handlers[0].stream) == (out, err, err)
"""
    with terminal("-c", code, command=(PYTHON,)) as opened:
        opened.wait_for(r"Loading \[the\] 模型 0:00:0\d")
        opened.type("\n")
        opened.wait_for("^loaded")
        assert opened.wait_ended() == 0
        assert b"\x1b[?25l" not in opened.raw  # a hidden cursor would stay hidden if the process is killed
        return opened.raw.decode()


def test_a_terminal_shows_the_name_and_the_time_until_the_end() -> None:
    assert "\x1b[2K" in output_of("pass").split("loaded")[0]


@pytest.mark.parametrize(
    "fn",
    ["print('mine')", "print('mine', file=sys.stderr)", "logging.warning('mine')"],
    ids=["stdout", "stderr", "log"],
)
def test_the_line_disappears_when_the_function_writes(fn: str) -> None:
    before, after = output_of(fn).split("mine")
    assert before.endswith("\x1b[2K")
    assert "Loading" not in after


def test_streams_are_restored_after_an_error() -> None:
    code = """
import sys
from aiochatstream import LoadTime
streams = sys.stdout, sys.stderr
try:
    LoadTime(name="Loading", fn=lambda: 1 // 0)()
except ZeroDivisionError:
    print("raised", (sys.stdout, sys.stderr) == streams)
"""
    with terminal("-c", code, command=(PYTHON,)) as opened:
        opened.wait_for("^raised True")
        assert opened.wait_ended() == 0
