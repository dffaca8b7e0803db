"""The command ``aiochatstream serve``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import signal
import sys
from pathlib import Path

import aiohttp_session
from aiohttp import web

from aiochatstream import terminal
from aiochatstream.chat_stream import ChatStream
from aiochatstream.cli import engines, listening, serve_options, session_options
from aiochatstream.cli.engines import ModelSource
from aiochatstream.cli.serve_options import API_KEYS
from aiochatstream.console import model_options, prompt_options
from aiochatstream.console import options as console_options
from aiochatstream.engines import RecordingEngine
from aiochatstream.models import Models
from aiochatstream.params import Limits
from aiochatstream.prompts import ChatPrompt
from aiochatstream.runtime.engine_runtime import DEFAULT_SLOTS
from aiochatstream.texts import Texts, texts_for
from aiochatstream.web.errors import json_error_middleware
from aiochatstream.web.openai.keys import ApiKeys
from aiochatstream.web.server_log import shorten_client_errors

OPENAI_PREFIX = "/v1"

HANDLER_ARGS = {"auto_decompress": False, "read_bufsize": 1 << 15}
"""Options of aiohttp's connections: ChatStream decompresses bodies itself, and buffers are small."""

SHUTDOWN_TIMEOUT = 2.0
"""Seconds that aiohttp waits for open connections after ChatStream has closed its own."""


def run(options: argparse.Namespace) -> Exception | None:
    """Serve models until SIGTERM or Ctrl-C. Return the error of loading one, if it failed.

    Raise ValueError and OSError for wrong options.
    """
    sources = serve_options.check(options)
    if options.child:
        logging.getLogger().setLevel(logging.WARNING)  # its parent logs the answers
        _end_with_parent()
    texts = texts_for(options.locale)
    sessions = session_options.configure(options, texts, os.environ)
    api_keys = read_api_keys(options.api_key_file)
    if options.unix is None:
        listener = listening.listen(options.host, options.port, texts)
        url = listening.url_of(options.host, listener.getsockname()[1])
    else:
        listener = listening.listen_at(options.unix, texts)
        url = f"unix:{options.unix}"
    try:
        chat_streams = {source: _chat_stream(options, source, url, sessions, texts) for source in sources}
    except BaseException:
        listener.close()
        raise
    failures: list[Exception] = []

    async def announce() -> None:
        try:
            for chat_stream in chat_streams.values():
                await chat_stream.wait_ready()
                if options.concurrency is None and chat_stream.engine.batch_obstacle is not None:  # known only now
                    chat_stream.admission.resize(DEFAULT_SLOTS)
        except Exception as error:  # noqa: BLE001 - loading a model may raise any error; the caller prints it
            failures.append(error)
            signal.raise_signal(signal.SIGTERM)
            return
        if not options.child:
            terminal.write(_announcement(chat_streams, url, texts), sys.stdout)

    async def start_announcing(app: web.Application) -> None:
        tasks.append(asyncio.create_task(announce()))

    tasks: list[asyncio.Task[None]] = []
    app = web.Application(middlewares=[json_error_middleware()], handler_args=HANDLER_ARGS)
    if sessions.connection is not None:
        app.cleanup_ctx.append(sessions.connection)  # opened first, closed last
    aiohttp_session.setup(app, sessions.storage)
    first = chat_streams[sources[0]]
    app.add_routes(first.routes())
    first.setup(app)
    if options.models is None:
        first.setup_openai(app, OPENAI_PREFIX, api_keys, model_name=_model_name(options))
    else:
        models = Models({str(source.name): chat_stream for source, chat_stream in chat_streams.items()})
        models.setup_openai(app, OPENAI_PREFIX, api_keys)
    app.on_startup.append(start_announcing)
    logging.getLogger("aiohttp.server").addFilter(shorten_client_errors)
    web.run_app(
        app,
        sock=listener,
        backlog=listening.BACKLOG,
        print=None,
        loop=new_event_loop(),
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )
    return failures[0] if failures else None


def _chat_stream(
    options: argparse.Namespace, source: ModelSource, url: str, sessions: session_options.Sessions, texts: Texts
) -> ChatStream:
    in_process = options.mock is None and options.replay is None and not source.urls and options.devices is None
    prompt_class_of = prompt_options.prompt_class_of(options.prompt, completes=True)
    engine = engines.engine_of(options, source, url, texts)
    queue = serve_options.QUEUE_OF_UPSTREAMS if source.urls else serve_options.QUEUE
    chat_stream = ChatStream(
        num_of_concurrent_executions=engines.slots_of(options, source),
        max_queue_size=queue if options.queue is None else options.queue,
        engine=engine,
        chat_prompt_clazz=prompt_class_of if in_process else ChatPrompt,
        params=console_options.ModelParams.of(vars(options)),
        limits=Limits(
            context_len="max" if options.context_len is None else options.context_len,
            fill_context=options.max_new_tokens is None,
            strict_max_tokens=options.strict_max_tokens,
        ),
        allow_system_prompt=True,
        allowed_hosts=listening.allowed_hosts(options.host, options.allowed_host),
        conversation_store=sessions.store,
        locale=options.locale,
    )
    if options.share_queue:
        session_options.share_queue(chat_stream, sessions, source.name)
    return chat_stream


def _model_name(options: argparse.Namespace) -> str | None:
    """Return the name of the model for OpenAI's clients; None for the model's own name."""
    return "replay" if options.replay is not None else None if options.mock is None else f"mock-{options.mock}"


def read_api_keys(file: Path | None) -> ApiKeys:
    """Return the API keys of the file, or else of the environment variable.

    Raise ValueError if the variable is set and contains no key: everyone would have access.
    """
    if file is not None or API_KEYS not in os.environ:
        return ApiKeys(file)
    try:
        return ApiKeys(os.environ[API_KEYS].split())
    except ValueError as error:
        raise ValueError(str(error).replace("api_keys", API_KEYS)) from None


def _announcement(chat_streams: dict[ModelSource, ChatStream], url: str, texts: Texts) -> str:
    first = next(iter(chat_streams.values()))
    body = '{"user_input": "What is the capital of Japan?"}'
    lines = [texts.ready.format(url=url)]
    for source, chat_stream in chat_streams.items():
        lines += _rows(source, chat_stream, texts)
    lines.append(texts.row_openai.format(url=f"{url}{OPENAI_PREFIX}"))
    if not first.chats:
        lines.append(texts.row_no_chats.format(options=prompt_options.REMEDY))
    command = f"curl -N {url}/chat_stream -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    return "\n".join([*lines, texts.usage.format(url=url, command=command)])


def _rows(source: ModelSource, chat_stream: ChatStream, texts: Texts) -> list[str]:
    """Return the lines about a model."""
    engine = chat_stream.engine
    description = engine.describe()
    name = description["model"] if source.name is None else f"{source.name} ({description['model']})"
    lines = [texts.row_model.format(model=name)]
    if "device" in description:
        weights = model_options.describe_weights(source.model, description["weights"], texts)
        lines += [
            texts.row_device.format(device=description["device"], dtype=description["dtype"]),
            texts.row_weights.format(weights=weights),
        ]
    if "servers" in description:
        lines.append(texts.row_servers.format(servers=description["servers"]))
    places, status = chat_stream.capacity.max_queue_size, chat_stream.limits.overload_status
    lines += [
        texts.row_concurrency.format(slots=chat_stream.admission.slots),
        texts.row_queue.format(places=places, status=status),
    ]
    if engine.tokenizer is not None:
        context, answer = chat_stream.context_len, chat_stream.params.max_new_tokens
        lines.append(texts.row_context.format(context=context, answer=answer))
    if isinstance(engine, RecordingEngine):
        lines.append(texts.row_recording.format(folder=engine.folder))
    return lines


def _end_with_parent() -> None:
    from aiochatstream.engines.upstream.child_servers import end_with_parent  # only in servers of devices

    end_with_parent()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop: uvloop's, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
