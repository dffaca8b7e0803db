"""Output of the console."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod

from rich.console import Console
from rich.status import Status
from rich.text import Text

from aiochatstream import terminal


class Screen(ABC):
    """Output of answers, notes, replies to commands, and errors."""

    _in_line = False
    """True while the last line of the answer has no newline."""

    @abstractmethod
    def wait(self, reason: str) -> None:
        """Show that an answer is pending, until anything else is written. ``reason`` may be empty."""

    @abstractmethod
    def think(self, text: str) -> None:
        """Write a chunk of the model's thoughts."""

    @abstractmethod
    def write(self, text: str) -> None:
        """Write a chunk of the answer."""

    @abstractmethod
    def end(self) -> None:
        """End the answer."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Write a note about the answer, such as statistics."""

    @abstractmethod
    def reply(self, text: str) -> None:
        """Write the reply to a command, or a hint."""

    @abstractmethod
    def error(self, sentence: str) -> None:
        """Write an error message."""

    def _write(self, text: str) -> None:
        terminal.write(text, sys.stdout, end="")
        if text:
            self._in_line = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._in_line:
            print(flush=True)
        self._in_line = False


class PlainScreen(Screen):
    """Output of a filter: answers without thoughts go to stdout, errors and replies to stderr, without decoration."""

    def wait(self, reason: str) -> None:
        pass

    def think(self, text: str) -> None:
        pass

    def write(self, text: str) -> None:
        self._write(text)

    def end(self) -> None:
        self._end_line()

    def note(self, text: str) -> None:
        pass

    def reply(self, text: str) -> None:
        terminal.write(text, sys.stderr)

    def error(self, sentence: str) -> None:
        terminal.write(f"aiochatstream: {sentence}", sys.stderr)


class TerminalScreen(Screen):
    """Output to a terminal, with colours and a spinner."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._thinking = False
        """True while the last line belongs to a thought."""

    def wait(self, reason: str) -> None:
        text = Text(reason, style="dim")
        if self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def think(self, text: str) -> None:
        self._stop_waiting()
        if not self._thinking:
            self._end_line()
        self._thinking = True
        self._console.print(Text(terminal.without_controls(text), style="dim"), end="")
        self._in_line = not text.endswith("\n")

    def write(self, text: str) -> None:
        self._stop_waiting()
        if self._thinking:
            self._end_line()
        self._write(text)

    def end(self) -> None:
        self._stop_waiting()
        self._end_line()

    def _end_line(self) -> None:
        super()._end_line()
        self._thinking = False

    def note(self, text: str) -> None:
        self._print(text, "dim")

    def reply(self, text: str) -> None:
        self._print(text, "cyan")

    def error(self, sentence: str) -> None:
        self._print(sentence, "red")

    def _print(self, text: str, style: str) -> None:
        self.end()
        self._console.print(Text(terminal.without_controls(text), style=style))

    def _stop_waiting(self) -> None:
        if self._status is not None:
            self._status.stop()
        self._status = None
