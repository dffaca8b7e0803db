"""The command ``aiochatstream chat``."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from aiochatstream import terminal
from aiochatstream.chat_stream import ChatStream
from aiochatstream.console import model_options, prompt_options
from aiochatstream.console.backend import Backend
from aiochatstream.console.console import Console
from aiochatstream.console.lines import on_sigint, read_pipe, read_terminal
from aiochatstream.console.local import LocalBackend
from aiochatstream.console.options import DEFAULTS, SAMPLING_OPTIONS, ModelParams
from aiochatstream.console.remote import ServerBackend
from aiochatstream.console.screen import PlainScreen, TerminalScreen
from aiochatstream.errors import ChatStreamError
from aiochatstream.extras import MissingExtra
from aiochatstream.params import Limits, ParamOverrides
from aiochatstream.progress import show_progress
from aiochatstream.texts import Texts
from aiochatstream.validation import validated

FAILED = 1
INTERRUPTED = 130

MODEL_OPTIONS = (*model_options.NAMES, "compile", "context_len", "system", *prompt_options.NAMES)


def main(options: argparse.Namespace, texts: Texts) -> int:
    """Run the command and return its exit code. Raise ValueError, OSError and ChatStreamError."""
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        backend, params = _choose_backend(options, texts)
        with asyncio.Runner() as runner:
            return runner.run(_run(backend, params, texts))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discard buffered output
        return FAILED


async def _run(
    opening_backend: AbstractAsyncContextManager[Backend], params: ParamOverrides | None, texts: Texts
) -> int:
    async with opening_backend as backend:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            console = Console(backend, PlainScreen(), texts, params)
            with on_sigint(_current_task().cancel):
                await read_pipe(console)
            return FAILED if console.failures else 0
        screen = TerminalScreen()
        screen.note(texts.welcome.format(name=backend.name))
        await read_terminal(Console(backend, screen, texts, params))
        return 0


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - the type checker does not know that this runs in a task
    return task


def _choose_backend(
    options: argparse.Namespace, texts: Texts
) -> tuple[AbstractAsyncContextManager[Backend], ParamOverrides | None]:
    """Return the backend, not yet entered, and the parameters of all answers."""
    specified = {name: value for name, value in vars(options).items() if value is not None}
    if not (options.target or "").startswith(("http://", "https://")):
        return _open_model({**DEFAULTS, **specified}, texts), None
    for name in MODEL_OPTIONS:
        if name in specified:
            raise ValueError(texts.not_for_server.format(option=f"--{name.replace('_', '-')}"))
    sampling = {name: specified[name] for name in SAMPLING_OPTIONS if name in specified}
    return ServerBackend(options.target, texts), validated(ParamOverrides, sampling)


@asynccontextmanager
async def _open_model(options: dict[str, Any], texts: Texts) -> AsyncIterator[Backend]:
    with terminal.default_ctrl_c():
        from aiochatstream.engines.transformers import TransformersEngine, loading  # a slow import

    source = options.get("target")
    name = source or texts.small_model
    prompt_options.check_combination(options.get("prompt"), options.get("chat_template"))
    prompt_class_of = prompt_options.prompt_class_of(options.get("prompt"))
    load_options = model_options.load_options(options)
    load_model, load_tokenizer = loading.loaders(source, load_options)
    load_tokenizer = prompt_options.with_chat_template(load_tokenizer, options.get("chat_template"))
    async with AsyncExitStack() as stack:
        try:
            with show_progress(texts.loading_name.format(name=name)):
                chat_stream = ChatStream(
                    num_of_concurrent_executions=1,
                    max_queue_size=0,
                    engine=TransformersEngine(
                        load_model, load_tokenizer, compile="compile" in options, quantize=load_options.quantize
                    ),
                    chat_prompt_clazz=prompt_class_of,
                    params=ModelParams.of(options),
                    limits=Limits(
                        context_len=options.get("context_len", "max"), fill_context="max_new_tokens" not in options
                    ),
                    locale=options["locale"],
                )
                await stack.enter_async_context(chat_stream)
                await chat_stream.wait_ready()
        except (OSError, ValueError, MissingExtra):
            raise
        except Exception as error:  # loading a model may raise any error
            raise ChatStreamError(str(error) or repr(error)) from error
        weights = model_options.describe_weights(source, chat_stream.engine.describe()["weights"], texts)
        yield LocalBackend(chat_stream, f"{name} ({weights})", options["system"])
