"""Where the console writes."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod

from rich.console import Console
from rich.status import Status
from rich.text import Text

from aiochatstream import terminal


class Screen(ABC):
    """Answers, and what else there is to say."""

    _in_line = False
    """The last line of the answer has not ended."""

    @abstractmethod
    def wait(self, why: str) -> None:
        """Show that an answer is waited for, until something else is written. ``why`` may be empty."""

    @abstractmethod
    def write(self, text: str) -> None:
        """A piece of the answer."""

    @abstractmethod
    def end(self) -> None:
        """The answer is over."""

    @abstractmethod
    def remark(self, text: str) -> None:
        """About the answer: figures, say."""

    @abstractmethod
    def say(self, text: str) -> None:
        """What was asked for, or a hint."""

    @abstractmethod
    def complain(self, sentence: str) -> None:
        """Something did not work."""

    def _write(self, text: str) -> None:
        terminal.write(text, sys.stdout, end="")
        if text:
            self._in_line = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._in_line:
            print(flush=True)
        self._in_line = False


class PlainScreen(Screen):
    """Answers go to stdout and complaints to stderr, without any decoration: a filter."""

    def wait(self, why: str) -> None:
        """Nobody watches."""

    def write(self, text: str) -> None:
        self._write(text)

    def end(self) -> None:
        self._end_line()

    def remark(self, text: str) -> None:
        """Not a part of the answer."""

    def say(self, text: str) -> None:
        terminal.write(text, sys.stderr)

    def complain(self, sentence: str) -> None:
        terminal.write(f"aiochatstream: {sentence}", sys.stderr)


class TerminalScreen(Screen):
    """For a person."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._status: Status | None = None

    def wait(self, why: str) -> None:
        if self._status is None:
            self._status = self._console.status(Text(why, style="dim"))
            self._status.start()
        else:
            self._status.update(Text(why, style="dim"))

    def write(self, text: str) -> None:
        self._stop_waiting()
        self._write(text)

    def end(self) -> None:
        self._stop_waiting()
        self._end_line()

    def remark(self, text: str) -> None:
        self._print(text, "dim")

    def say(self, text: str) -> None:
        self._print(text, "cyan")

    def complain(self, sentence: str) -> None:
        self._print(sentence, "red")

    def _print(self, text: str, style: str) -> None:
        self.end()
        self._console.print(Text(terminal.without_controls(text), style=style))

    def _stop_waiting(self) -> None:
        if self._status is not None:
            self._status.stop()
        self._status = None
