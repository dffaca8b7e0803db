"""Programs in a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.processes import END_PATIENCE, PYTHON, ROOT, START_PATIENCE, Program, started

CTRL_C, CTRL_D, ALT_ENTER = "\x03", "\x04", "\x1b\r"

ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[()][A-Z0-9]|[=>78])")


@dataclass
class Terminal:
    """A program in a terminal. Its output is in :attr:`text`, without escape sequences."""

    popen: Program
    master: int
    raw: bytes = field(default=b"")
    _searched: int = 0

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self.raw.decode(errors="replace")).replace("\r", "").replace("\b", "")

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, pattern: str, patience: float = START_PATIENCE) -> re.Match[str]:
        """Read until the output after the last match contains ``pattern``."""
        deadline = time.monotonic() + patience
        while not (match := re.compile(pattern, re.MULTILINE).search(self.text, self._searched)):
            left = deadline - time.monotonic()
            assert left > 0, f"No {pattern!r} in {patience:g} seconds:\n{self.text}"
            assert self._read(left), f"It ended without {pattern!r}:\n{self.text}"
        self._searched = match.end()
        return match

    def wait_ended(self) -> int:
        """Read the remaining output and return the exit code."""
        deadline = time.monotonic() + START_PATIENCE
        while self._read(END_PATIENCE):
            assert time.monotonic() < deadline, f"It did not end in {START_PATIENCE:g} seconds:\n{self.text}"
        return self.popen.wait(END_PATIENCE)

    def _read(self, seconds: float) -> bool:
        """Read output that is available within ``seconds``; return False at the end."""
        if not select.select([self.master], [], [], seconds)[0]:
            return self.popen.poll() is None
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:  # on Linux, after the last process has closed the terminal
            return False
        self.raw += data
        return bool(data)


@contextmanager
def terminal(
    *arguments: str,
    command: Sequence[str] = (PYTHON, "-m", "aiochatstream"),
    columns: int = 100,
    forked: bool = False,
    streams: Mapping[int, int] | None = None,
    **env: str,
) -> Iterator[Terminal]:
    """Run the command in a terminal of its own, and kill it at the end of the block.

    :param forked: start a :class:`~tests.processes.ForkedProgram`.
    :param streams: descriptors in place of the terminal, by 0 for its input, 1 for its output, 2 for its errors.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {
        **os.environ,
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm-256color",
        "PROMPT_TOOLKIT_NO_CPR": "1",  # this terminal does not answer requests for the cursor's position
        "OMP_NUM_THREADS": "1",
        **env,
    }
    descriptors = [(streams or {}).get(number, slave) for number in range(3)]
    with started([*command, *arguments], descriptors, ROOT, environment, forked) as popen:
        os.close(slave)
        try:
            yield Terminal(popen, master)
        finally:
            os.close(master)
