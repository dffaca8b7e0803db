"""The commands that begin with a slash."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiochatstream.conversations.export import ExportedConversation
from aiochatstream.params import ParamOverrides, validated

if TYPE_CHECKING:
    from aiochatstream.console.console import Console

DEFAULT = "default"
"""What takes a value back that was set."""


@dataclass(frozen=True)
class Command:
    """usage: what follows the name. help_field: the message that explains it."""

    run: Callable[[Console, str], Coroutine[Any, Any, None]]
    usage: str
    help_field: str


def nearest(name: str) -> str:
    """The command whose name is most like ``name``; empty where none is."""
    return next(iter(difflib.get_close_matches(name, COMMANDS, 1)), "")


async def regenerate(console: Console, arguments: str) -> None:
    await console.ask(None)


async def clear(console: Console, arguments: str) -> None:
    there_was_one = await console.backend.clear()
    console.screen.say(console.messages.cleared if there_was_one else console.messages.nothing_to_clear)


async def system(console: Console, arguments: str) -> None:
    if arguments:
        await console.backend.set_system("" if arguments == DEFAULT else arguments)
    text = await console.backend.get_system()
    messages = console.messages
    console.screen.say(messages.system.format(text=text) if text else messages.models_own_system)


async def params(console: Console, arguments: str) -> None:
    words, messages = shlex.split(arguments), console.messages
    if len(words) % 2:
        raise ValueError(messages.params_in_pairs)
    names = ", ".join(ParamOverrides.model_fields)
    values = console.params.model_dump(exclude_none=True)
    for name, word in zip(words[::2], words[1::2], strict=True):
        if name not in ParamOverrides.model_fields:
            raise ValueError(messages.no_such_param.format(name=name, names=names))
        values[name] = None if word == DEFAULT else _value(word)
    changed = validated(ParamOverrides, values)
    console.backend.check(changed)
    console.params = changed
    lines = [
        f"{name} {json.dumps(value, ensure_ascii=False)}"
        for name, value in changed.model_dump(exclude_none=True).items()
    ]
    console.screen.say("\n".join(lines) or messages.no_params.format(names=names))


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except (ValueError, RecursionError):
        return word


async def save(console: Console, arguments: str) -> None:
    file = _file(console, "/save", arguments)
    saved = await console.backend.save()
    saved.write(file)
    console.screen.say(console.messages.saved.format(count=saved.turns, file=file))


async def load(console: Console, arguments: str) -> None:
    file = _file(console, "/load", arguments)
    try:
        saved = ExportedConversation.read(file)
    except ValueError as error:
        raise ValueError(console.messages.not_a_conversation.format(file=file, reason=error)) from None
    await console.backend.load(saved)
    console.screen.say(console.messages.loaded.format(count=saved.turns, file=file))
    if system := await console.backend.get_system():
        console.screen.say(console.messages.system.format(text=system))


def _file(console: Console, name: str, arguments: str) -> Path:
    if not arguments:
        raise ValueError(console.messages.takes_file.format(name=name))
    return Path(arguments).expanduser()


async def stats(console: Console, arguments: str) -> None:
    messages = console.messages
    console.screen.say(console.stats.table(messages) if console.stats.answers else messages.no_stats)


async def help_(console: Console, arguments: str) -> None:
    rows = [
        (f"{name} {command.usage}", getattr(console.messages, command.help_field)) for name, command in COMMANDS.items()
    ]
    lines = [f"{usage:26}{explanation}" for usage, explanation in rows]
    console.screen.say("\n".join([*lines, console.messages.help_keys]))


async def leave(console: Console, arguments: str) -> None:
    console.leaving = True


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
