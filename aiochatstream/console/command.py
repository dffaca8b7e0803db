"""``aiochatstream chat``: whom to talk to, and how."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from aiochatstream import terminal
from aiochatstream.chat_stream import ChatStream
from aiochatstream.console.backend import Backend
from aiochatstream.console.console import Console
from aiochatstream.console.lines import on_sigint, read_pipe, read_terminal
from aiochatstream.console.local import LocalBackend
from aiochatstream.console.options import DEFAULTS
from aiochatstream.console.remote import ServerBackend
from aiochatstream.console.screen import PlainScreen, TerminalScreen
from aiochatstream.errors import ChatStreamError
from aiochatstream.params import ParamOverrides, validated
from aiochatstream.progress import showing_progress
from aiochatstream.prompts import ChatPrompt
from aiochatstream.texts import Messages

FAILED = 1
INTERRUPTED = 130

SAMPLING = ("max_new_tokens", "temperature", "top_p")
ONLY_MODEL = ("device", "dtype", "compile", "context_len", "system")


def main(options: argparse.Namespace, messages: Messages) -> int:
    """Run the command; return its exit code. Raises ValueError, OSError and ChatStreamError with a sentence."""
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        backend, params = _backend(options, messages)
        with asyncio.Runner() as runner:
            return runner.run(_talk(backend, params, messages))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is for nobody
        return FAILED


async def _talk(
    entering: AbstractAsyncContextManager[Backend], params: ParamOverrides | None, messages: Messages
) -> int:
    async with entering as backend:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            console = Console(backend, PlainScreen(), messages, params)
            with on_sigint(_cancel_of_this_task()):
                await read_pipe(console)
            return FAILED if console.failures else 0
        screen = TerminalScreen()
        screen.remark(messages.welcome.format(name=backend.name))
        await read_terminal(Console(backend, screen, messages, params))
        return 0


def _cancel_of_this_task() -> Callable[[], object]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - the type checker does not know that this runs in a task
    return task.cancel


def _backend(
    options: argparse.Namespace, messages: Messages
) -> tuple[AbstractAsyncContextManager[Backend], ParamOverrides | None]:
    """Whom to talk to, to be entered, and what every answer is asked with."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    if not (options.target or "").startswith(("http://", "https://")):
        return _model({**DEFAULTS, **given}, messages), None
    for name in ONLY_MODEL:
        if name in given:
            raise ValueError(messages.not_for_server.format(option=f"--{name.replace('_', '-')}"))
    sampling = {name: given[name] for name in SAMPLING if name in given}
    return ServerBackend(options.target, messages), validated(ParamOverrides, sampling)


@asynccontextmanager
async def _model(options: dict[str, Any], messages: Messages) -> AsyncIterator[Backend]:
    with terminal.ctrl_c_ends_at_once():
        from aiochatstream.engines.transformers import TransformersEngine, loading  # takes its time

    source = options.get("target")
    name = source or messages.small_model
    device = loading.choose_device(options["device"])
    dtype = loading.choose_dtype(device, options["dtype"])
    loaders = loading.loaders(loading.locate(source), device, dtype)
    async with AsyncExitStack() as stack:
        try:
            with showing_progress(messages.loading_name.format(name=name)):
                chat_stream = ChatStream(
                    num_of_concurrent_executions=1,
                    max_queue_size=0,
                    engine=TransformersEngine(*loaders, compile="compile" in options),
                    chat_prompt_clazz=ChatPrompt.for_model,
                    max_new_tokens=options["max_new_tokens"],
                    context_len=options.get("context_len"),
                    temperature=options["temperature"],
                    top_p=options["top_p"],
                    locale=options["locale"],
                )
                await stack.enter_async_context(chat_stream)
                await chat_stream.wait_ready()
        except (OSError, ValueError):
            raise
        except Exception as error:  # whatever loading a model raises
            raise ChatStreamError(str(error) or repr(error)) from error
        yield LocalBackend(chat_stream, name, options["system"])
