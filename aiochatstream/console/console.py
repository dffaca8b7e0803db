"""What the console does with a line: a message is answered, a command carried out."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from aiochatstream.console.backend import Backend
from aiochatstream.console.commands import COMMANDS, nearest
from aiochatstream.console.screen import Screen
from aiochatstream.console.stats import Stats
from aiochatstream.errors import ChatStreamError, Unavailable
from aiochatstream.params import ParamOverrides
from aiochatstream.runtime.events import Ended, Failed, Queued, Text
from aiochatstream.texts import Messages


class Console:
    """A conversation with ``backend`` on ``screen``.

    :param params: of every answer, until /params changes them.
    """

    def __init__(
        self, backend: Backend, screen: Screen, messages: Messages, params: ParamOverrides | None = None
    ) -> None:
        self.backend, self.screen, self.messages = backend, screen, messages
        self.params = params or ParamOverrides()
        self.stats = Stats()
        self.leaving = False
        """Someone said /exit."""
        self.failures = 0
        """Lines that led to a complaint."""
        self.draft = ""
        """The last line, where its message has no answer: to be offered again."""
        self._work: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def take(self, line: str) -> None:
        """Do what ``line`` says. Returns when that is done, or was interrupted; complains on the screen."""
        line = line.strip().encode(errors="replace").decode()  # half characters of a broken terminal
        self.draft = ""
        if not line:
            return
        work = self._work = asyncio.create_task(self._do(line))
        try:
            await asyncio.wait({work})
        finally:
            work.cancel()  # where this task was cancelled
            if self._stopping is not None:
                self._stopping.cancel()
            self._work = self._stopping = None
        if work.cancelled():
            self.screen.end()
            self.screen.remark(self.messages.stopped)
        else:
            work.result()

    def interrupt(self) -> None:
        """Ctrl-C: end the answer in order; the second time, or where there is no answer, leave off at once."""
        if self._work is None:
            return
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(self._work))
        else:
            self._work.cancel()

    async def _stop(self, work: asyncio.Task[None]) -> None:
        if not await self.backend.stop():
            work.cancel()

    async def _do(self, line: str) -> None:
        is_command = line.startswith("/") and not line.startswith("//")
        try:
            if is_command:
                await self._command(*line.partition(" ")[::2])
            else:
                self.draft = line
                await self.ask(line[1:] if line.startswith("//") else line)
        except ChatStreamError as error:
            self.draft = "" if is_command else line
            again = ""
            if isinstance(error, Unavailable):
                again = " " + self.messages.again_in.format(seconds=error.retry_after)
            self._complain(error.detail + again)
        except OSError as error:
            if error.filename is None:
                raise
            self._complain(f"{error.filename}: {error.strerror}.")
        except ValueError as error:
            self._complain(str(error))

    def _complain(self, sentence: str) -> None:
        self.screen.end()
        self.screen.complain(sentence)
        self.failures += 1

    async def _command(self, name: str, arguments: str) -> None:
        command = COMMANDS.get(name)
        if command is None:
            like = nearest(name)
            sentence = self.messages.no_such_command if like else self.messages.no_command
            raise ValueError(sentence.format(name=name, nearest=like))
        await command.run(self, arguments.strip())

    async def ask(self, message: str | None) -> None:
        """Have ``message`` answered (None: the last one again), and show that."""
        self.screen.wait("")
        async with aclosing(self.backend.answer(message, self.params)) as events:
            async for event in events:
                match event:
                    case Queued(position):
                        self.screen.wait(self.messages.queued.format(position=position))
                    case Text(text):
                        self.screen.write(text)
                        self.draft = ""
                    case Failed(error):
                        raise error
                    case Ended():
                        self._ended(event)

    def _ended(self, event: Ended) -> None:
        if event.finish_reason != "cancelled":
            self.draft = ""
        self.stats.add(event)
        self.screen.end()
        marks = {"cancelled": self.messages.stopped, "length": self.messages.cut}
        if event.finish_reason in marks:
            self.screen.remark(marks[event.finish_reason])
        if event.kept is not None and event.kept.dropped_turns:
            self.screen.remark(self.messages.dropped.format(count=event.kept.dropped_turns))
        if event.kept is not None and not event.kept.stored:
            self.screen.remark(self.messages.not_stored)
        self.screen.remark(self.stats.last_answer(self.messages))
