"""The console: answers messages, and runs the commands that begin with a slash."""

from __future__ import annotations

import asyncio
import difflib
import json
import shlex
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiochatstream.console.backend import Backend
from aiochatstream.console.screen import Screen
from aiochatstream.console.stats import Stats
from aiochatstream.conversations.export import ExportedConversation
from aiochatstream.errors import ChatStreamError, Unavailable
from aiochatstream.params import ParamOverrides
from aiochatstream.runtime.events import Ended, Failed, Queued, Text, Thinking
from aiochatstream.texts import Texts
from aiochatstream.validation import validated

DEFAULT = "default"
"""Value that resets a parameter or the system prompt."""


class Console:
    """A conversation with ``backend`` on ``screen``.

    :param params: parameters of the answers, until /params changes them.
    """

    def __init__(self, backend: Backend, screen: Screen, texts: Texts, params: ParamOverrides | None = None) -> None:
        self.backend, self.screen, self.texts = backend, screen, texts
        self.params = params or ParamOverrides()
        self.stats = Stats()
        self.leaving = False
        """True after /exit."""
        self.failures = 0
        """Number of lines that led to an error message."""
        self.draft = ""
        """The last line, to offer it again, if its message has no answer."""
        self._task: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def handle(self, line: str) -> None:
        """Answer a message or run a command, and return when it is complete or interrupted."""
        line = line.strip().encode(errors="replace").decode()  # unpaired surrogates of a broken terminal
        self.draft = ""
        if not line:
            return
        task = self._task = asyncio.create_task(self._handle(line))
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()  # if this task was cancelled
            if self._stopping is not None:
                self._stopping.cancel()
            self._task = self._stopping = None
        if task.cancelled():
            self.screen.end()
            self.screen.note(self.texts.stopped)
        else:
            task.result()

    def interrupt(self) -> None:
        """Handle Ctrl-C: stop the answer in order; at the second call, or without an answer, cancel the line."""
        if self._task is None:
            return
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(self._task))
        else:
            self._task.cancel()

    async def answer(self, message: str | None) -> None:
        """Show the answer to ``message``; None answers the last message again."""
        self.screen.wait("")
        async with aclosing(self.backend.answer(message, self.params)) as events:
            async for event in events:
                match event:
                    case Queued(position):
                        self.screen.wait(self.texts.queued.format(position=position))
                    case Thinking(text):
                        self.screen.think(text)
                    case Text(text):
                        self.screen.write(text)
                        self.draft = ""
                    case Failed(error):
                        raise error
                    case Ended():
                        self._show_end(event)

    async def _stop(self, task: asyncio.Task[None]) -> None:
        if not await self.backend.stop():
            task.cancel()

    async def _handle(self, line: str) -> None:
        is_command = line.startswith("/") and not line.startswith("//")
        try:
            if is_command:
                await self._run_command(*line.partition(" ")[::2])
            else:
                self.draft = line
                await self.answer(line[1:] if line.startswith("//") else line)
        except ChatStreamError as error:
            self.draft = "" if is_command else line
            hint = ""
            if isinstance(error, Unavailable):
                hint = " " + self.texts.retry_in.format(seconds=error.retry_after)
            self._show_error(error.detail + hint)
        except OSError as error:
            if error.filename is None:
                raise
            self._show_error(f"{error.filename}: {error.strerror}.")
        except ValueError as error:
            self._show_error(str(error))

    async def _run_command(self, name: str, arguments: str) -> None:
        command = COMMANDS.get(name)
        if command is None:
            nearest = next(iter(difflib.get_close_matches(name, COMMANDS, 1)), "")
            sentence = self.texts.no_such_command if nearest else self.texts.no_command
            raise ValueError(sentence.format(name=name, nearest=nearest))
        await command.run(self, arguments.strip())

    def _show_error(self, sentence: str) -> None:
        self.screen.end()
        self.screen.error(sentence)
        self.failures += 1

    def _show_end(self, event: Ended) -> None:
        if event.finish_reason != "cancelled":
            self.draft = ""
        self.stats.add(event)
        self.screen.end()
        notes = {
            "cancelled": self.texts.stopped,
            "length": self.texts.cut,
            "thinking_length": self.texts.cut_thinking,
        }
        if event.finish_reason in notes:
            self.screen.note(notes[event.finish_reason])
        if event.save_result is not None and event.save_result.dropped_turns:
            self.screen.note(self.texts.dropped.format(count=event.save_result.dropped_turns))
        if event.save_result is not None and not event.save_result.stored:
            self.screen.note(self.texts.not_stored)
        self.screen.note(self.stats.last_answer(self.texts))


async def regenerate(console: Console, arguments: str) -> None:
    await console.answer(None)


async def clear(console: Console, arguments: str) -> None:
    cleared = await console.backend.clear()
    console.screen.reply(console.texts.cleared if cleared else console.texts.nothing_to_clear)


async def system(console: Console, arguments: str) -> None:
    if arguments:
        await console.backend.set_system("" if arguments == DEFAULT else arguments)
    text = await console.backend.get_system()
    console.screen.reply(console.texts.system.format(text=text) if text else console.texts.default_system)


async def params(console: Console, arguments: str) -> None:
    words, texts = shlex.split(arguments), console.texts
    if len(words) % 2:
        raise ValueError(texts.params_in_pairs)
    names = ", ".join(ParamOverrides.model_fields)
    values = console.params.model_dump(exclude_none=True)
    for name, word in zip(words[::2], words[1::2], strict=True):
        if name not in ParamOverrides.model_fields:
            raise ValueError(texts.no_such_param.format(name=name, names=names))
        values[name] = None if word == DEFAULT else _value(word)
    changed = validated(ParamOverrides, values)
    console.backend.check(changed)
    console.params = changed
    lines = [
        f"{name} {json.dumps(value, ensure_ascii=False)}"
        for name, value in changed.model_dump(exclude_none=True).items()
    ]
    console.screen.reply("\n".join(lines) or texts.no_params.format(names=names))


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except (ValueError, RecursionError):
        return word


async def save(console: Console, arguments: str) -> None:
    file = _file(console, "/save", arguments)
    saved = await console.backend.save()
    saved.write(file)
    console.screen.reply(console.texts.saved.format(count=saved.turns, file=file))


async def load(console: Console, arguments: str) -> None:
    file = _file(console, "/load", arguments)
    try:
        saved = ExportedConversation.read(file)
    except ValueError as error:
        raise ValueError(console.texts.not_a_conversation.format(file=file, reason=error)) from None
    await console.backend.load(saved)
    console.screen.reply(console.texts.loaded.format(count=saved.turns, file=file))
    if text := await console.backend.get_system():
        console.screen.reply(console.texts.system.format(text=text))


def _file(console: Console, name: str, arguments: str) -> Path:
    if not arguments:
        raise ValueError(console.texts.needs_file.format(name=name))
    return Path(arguments).expanduser()


async def stats(console: Console, arguments: str) -> None:
    console.screen.reply(console.stats.table(console.texts) if console.stats.answers else console.texts.no_stats)


async def help_(console: Console, arguments: str) -> None:
    lines = [
        f"{f'{name} {command.usage}':26}{getattr(console.texts, command.help_field)}"
        for name, command in COMMANDS.items()
    ]
    console.screen.reply("\n".join([*lines, console.texts.help_keys]))


async def leave(console: Console, arguments: str) -> None:
    console.leaving = True


@dataclass(frozen=True)
class Command:
    """A command of the console.

    run: coroutine function of the console and the arguments.
    usage: arguments, for /help.
    help_field: field of Texts that describes the command.
    """

    run: Callable[[Console, str], Coroutine[Any, Any, None]]
    usage: str
    help_field: str


COMMANDS = {
    "/regenerate": Command(regenerate, "", "help_regenerate"),
    "/clear": Command(clear, "", "help_clear"),
    "/system": Command(system, "[TEXT|default]", "help_system"),
    "/params": Command(params, "[NAME VALUE ...]", "help_params"),
    "/save": Command(save, "FILE", "help_save"),
    "/load": Command(load, "FILE", "help_load"),
    "/stats": Command(stats, "", "help_stats"),
    "/help": Command(help_, "", "help_help"),
    "/exit": Command(leave, "", "help_exit"),
}
