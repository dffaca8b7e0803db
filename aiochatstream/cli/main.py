"""The command ``aiochatstream``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp_session
from aiohttp import web

from aiochatstream import terminal
from aiochatstream.bench import options as bench_options
from aiochatstream.chat_stream import ChatStream
from aiochatstream.cli import check as check_command
from aiochatstream.cli import session_options
from aiochatstream.console import model_options, prompt_options
from aiochatstream.console import options as console_options
from aiochatstream.engines import Engine, RecordingEngine, ReplayEngine, ScriptedEngine
from aiochatstream.errors import ChatStreamError
from aiochatstream.extras import MissingExtra, requires_extra
from aiochatstream.params import Capacity, Limits
from aiochatstream.progress import LoadTime
from aiochatstream.prompts import ChatPrompt
from aiochatstream.runtime.daemon_threads import any_daemon_thread
from aiochatstream.sessions.client_address import parse_address
from aiochatstream.texts import LOCALES, Texts, locale_from_environment, texts_for
from aiochatstream.web.errors import json_error_middleware
from aiochatstream.web.openai.keys import ApiKeys
from aiochatstream.web.server_log import shorten_client_errors

logger = logging.getLogger(__name__)

FAILED = 1
WRONG_USE = 2
INTERRUPTED = 130

OPTIONS = {
    "--concurrency": "num_of_concurrent_executions",
    "--queue": "max_queue_size",
    "--max-new-tokens": "max_new_tokens",
    "--context-len": "context_len",
    "--max-thinking-tokens": "max_thinking_tokens",
    "--top-p": "top_p",
    "--allowed-host": "allowed_hosts",
    "--device-map": "device_map",
    "--trust-remote-code": "trust_remote_code",
    "--chat-template-kwargs": "chat_template_kwargs",
}
"""Options and the arguments of ChatStream whose names they replace in errors."""

OPENAI_PREFIX = "/v1"

HANDLER_ARGS = {"auto_decompress": False, "read_bufsize": 1 << 15}
"""Options of aiohttp's connections: ChatStream decompresses bodies itself, and buffers are small."""

BACKLOG = 4096
"""Maximum number of connections that wait to be accepted; the system's own limit, such as Linux' somaxconn, also
applies. With aiohttp's 128, hundreds of clients that connect at once wait seconds for their repeated SYN packets."""

SHUTDOWN_TIMEOUT = 2.0
"""Seconds that aiohttp waits for open connections after ChatStream has closed its own."""

API_KEYS = "AIOCHATSTREAM_API_KEYS"
"""Environment variable of API keys, separated by whitespace."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 1 (failure), 2 (wrong usage) or 130 (Ctrl-C)."""
    options = build_parser().parse_args(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(terminal.LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=options.log_level, handlers=[handler])
    try:
        code: int = options.run(options)
        return code
    except (OSError, ValueError, ChatStreamError, MissingExtra) as error:
        return _print_error(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def serve(options: argparse.Namespace) -> int:
    """Run ``aiochatstream serve``: serve a model until SIGTERM or Ctrl-C."""
    _check_options(options)
    capacity = Capacity(num_of_concurrent_executions=options.concurrency, max_queue_size=options.queue)
    params = console_options.ModelParams.of(vars(options))
    prompt_class_of = prompt_options.prompt_class_of(options.prompt, completes=True)
    limits = Limits(
        context_len="max" if options.context_len is None else options.context_len,
        fill_context=options.max_new_tokens is None,
        strict_max_tokens=options.strict_max_tokens,
    )
    texts = texts_for(options.locale)
    sessions = session_options.configure(options, texts, os.environ)
    api_keys = _api_keys(options.api_key_file)
    listener = _listen(options.host, options.port, texts)
    url = _url(options.host, listener.getsockname()[1])
    chat_stream = ChatStream(
        num_of_concurrent_executions=capacity.num_of_concurrent_executions,
        max_queue_size=capacity.max_queue_size,
        engine=_engine(options, url, texts),
        chat_prompt_clazz=prompt_class_of if _needs_model(options) else ChatPrompt,
        params=params,
        limits=limits,
        allow_system_prompt=True,
        allowed_hosts=_allowed_hosts(options.host, options.allowed_host),
        conversation_store=sessions.store,
        locale=options.locale,
    )
    failures: list[Exception] = []

    async def announce() -> None:
        try:
            await chat_stream.wait_ready()
        except Exception as error:  # noqa: BLE001 - loading a model may raise any error; it is printed below
            failures.append(error)
            signal.raise_signal(signal.SIGTERM)
            return
        terminal.write(_announcement(chat_stream, options.model, url, texts), sys.stdout)

    async def start_announcing(app: web.Application) -> None:
        tasks.append(asyncio.create_task(announce()))

    tasks: list[asyncio.Task[None]] = []
    app = web.Application(middlewares=[json_error_middleware()], handler_args=HANDLER_ARGS)
    if sessions.connection is not None:
        app.cleanup_ctx.append(sessions.connection)  # opened first, closed last
    aiohttp_session.setup(app, sessions.storage)
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)
    chat_stream.setup_openai(app, OPENAI_PREFIX, api_keys, model_name=_model_name(options))
    app.on_startup.append(start_announcing)
    logging.getLogger("aiohttp.server").addFilter(shorten_client_errors)
    web.run_app(
        app, sock=listener, backlog=BACKLOG, print=None, loop=_new_event_loop(), shutdown_timeout=SHUTDOWN_TIMEOUT
    )
    return _exit(_print_error(failures[0]) if failures else 0)


def chat(options: argparse.Namespace) -> int:
    """Run ``aiochatstream chat``: chat with a model or a running server."""
    with requires_extra("chat"):
        from aiochatstream.console import command  # not needed to serve

    return _exit(command.main(options, texts_for(options.locale)))


def check(options: argparse.Namespace) -> int:
    """Run ``aiochatstream check``: load a model and print its capabilities and problems."""
    return _exit(check_command.main(options))


def _check_options(options: argparse.Namespace) -> None:
    """Raise ValueError if options contradict each other, before a model is loaded."""
    source = "--mock" if options.mock is not None else "--replay" if options.replay is not None else None
    for option, is_set in (
        ("--replay", source == "--mock" and options.replay is not None),
        ("--record", source == "--replay" and options.record is not None),
        ("MODEL", options.model is not None),
        *((f"--{name.replace('_', '-')}", name in options) for name in model_options.NAMES),
        ("--compile", options.compile),
        *((f"--{name.replace('_', '-')}", vars(options)[name] is not None) for name in prompt_options.NAMES),
    ):
        if source is not None and is_set:
            raise ValueError(f"{option} cannot be used with {source}, which answers without a model.")
    prompt_options.check_combination(options.prompt, options.chat_template)
    context_len, answer = options.context_len, options.max_new_tokens
    if None not in (context_len, answer) and context_len <= answer:
        raise ValueError(f"context_len: must be above max_new_tokens ({answer}), not {context_len}.")


def _needs_model(options: argparse.Namespace) -> bool:
    return options.mock is None and options.replay is None


def _engine(options: argparse.Namespace, url: str, texts: Texts) -> Engine:
    """Return the engine of the model or of its substitute. Raise ValueError and OSError."""
    if options.replay is not None:
        return ReplayEngine(options.replay)
    engine = _transformers_engine(options, url, texts) if _needs_model(options) else ScriptedEngine(options.mock)
    return engine if options.record is None else RecordingEngine(engine, options.record)


def _transformers_engine(options: argparse.Namespace, url: str, texts: Texts) -> Engine:
    name = options.model or texts.small_model
    terminal.write(texts.loading.format(model=name, url=url), sys.stdout)
    with terminal.default_ctrl_c():
        from aiochatstream.engines.transformers import (  # a slow import
            TransformersEngine,
            loading,
        )

    model, tokenizer = loading.loaders(options.model, model_options.load_options(vars(options)))
    model = LoadTime(name=texts.loading_name.format(name=name), fn=model).__call__
    tokenizer = prompt_options.with_chat_template(tokenizer, options.chat_template)
    return TransformersEngine(model, tokenizer, compile=options.compile)


def _model_name(options: argparse.Namespace) -> str | None:
    """Return the name of the model for OpenAI's clients; None for the model's own name."""
    return "replay" if options.replay is not None else None if options.mock is None else f"mock-{options.mock}"


def _api_keys(file: Path | None) -> ApiKeys:
    """Return the API keys of the file, or else of the environment variable.

    Raise ValueError if the variable is set and contains no key: everyone would have access.
    """
    if file is not None or API_KEYS not in os.environ:
        return ApiKeys(file)
    try:
        return ApiKeys(os.environ[API_KEYS].split())
    except ValueError as error:
        raise ValueError(str(error).replace("api_keys", API_KEYS)) from None


def bench(options: argparse.Namespace) -> int:
    """Run ``aiochatstream bench``: load-test a running server."""
    from aiochatstream.bench import command  # not needed to serve

    return command.main(options, _new_event_loop)


def _exit(code: int) -> int:
    """Return ``code``; exit immediately if a thread is inside torch or waits for input, which would abort the exit."""
    if any_daemon_thread():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _print_error(error: Exception) -> int:
    """Print one sentence, with names of options, and return the exit code."""
    sentence = str(error) or repr(error)
    if isinstance(error, OSError) and error.filename is not None:
        sentence = f"{error.filename}: {error.strerror}."
    for option, parameter in OPTIONS.items():
        sentence = sentence.replace(parameter, option)
    terminal.write(f"aiochatstream: {sentence}", sys.stderr)
    return WRONG_USE if isinstance(error, ValueError | FileNotFoundError | IsADirectoryError | MissingExtra) else FAILED


def _url(host: str, port: int) -> str:
    """Return the URL of a server that listens on ``host``, for clients on this machine."""
    all_addresses = host in ("", "0.0.0.0", "::")  # noqa: S104
    return f"http://{'127.0.0.1' if all_addresses else f'[{host}]' if ':' in host else host}:{port}"


def _allowed_hosts(host: str, names: list[str] | None) -> list[str] | None:
    """Return the host names that clients may use: ``names``, and the name to listen on, which is in the printed URL."""
    if host in ("", "localhost") or parse_address(host) is not None:
        return names
    return [*(names or ()), host]


def _announcement(chat_stream: ChatStream, source: str | None, url: str, texts: Texts) -> str:
    engine, capacity = chat_stream.engine, chat_stream.capacity
    description = engine.describe()
    body = '{"user_input": "What is the capital of Japan?"}'
    lines = [
        texts.ready.format(url=url),
        texts.row_model.format(model=description["model"]),
        texts.row_concurrency.format(slots=capacity.num_of_concurrent_executions),
        texts.row_queue.format(places=capacity.max_queue_size, status=chat_stream.limits.overload_status),
    ]
    if "device" in description:
        weights = model_options.describe_weights(source, description["weights"], texts)
        lines[2:2] = [
            texts.row_device.format(device=description["device"], dtype=description["dtype"]),
            texts.row_weights.format(weights=weights),
        ]
    if engine.tokenizer is not None:
        context, answer = chat_stream.context_len, chat_stream.params.max_new_tokens
        lines.append(texts.row_context.format(context=context, answer=answer))
    if isinstance(engine, RecordingEngine):
        lines.append(texts.row_recording.format(folder=engine.folder))
    lines.append(texts.row_openai.format(url=f"{url}{OPENAI_PREFIX}"))
    if not chat_stream.chats:
        lines.append(texts.row_no_chats.format(options=prompt_options.REMEDY))
    command = f"curl -N {url}/chat_stream -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    return "\n".join([*lines, texts.usage.format(url=url, command=command)])


def _listen(host: str, port: int, texts: Texts) -> socket.socket:
    """Return a listening socket. It is opened before the model loads, to detect an address in use. Raise OSError."""
    try:
        if ":" not in host:
            return socket.create_server((host, port))
        dual_stack = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=dual_stack)
    except OSError as error:
        raise OSError(texts.cannot_listen.format(host=host, port=port, reason=error.strerror)) from None


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _port(text: str) -> int:
    port = int(text) if text.isdecimal() else -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("must be from 0 to 65535")
    return port


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aiochatstream", description="A streaming chat with a HuggingFace model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve_parser = commands.add_parser(
        "serve", help="serve a model over HTTP", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    serve_parser.set_defaults(run=serve, log_level=logging.INFO)
    _add_serve_arguments(serve_parser)
    _add_locale(serve_parser)
    chat_parser = commands.add_parser("chat", help="talk to a model or a running server in the terminal")
    chat_parser.set_defaults(run=chat, log_level=logging.WARNING)
    console_options.add_arguments(chat_parser)
    _add_locale(chat_parser)
    check_parser = commands.add_parser("check", help="load a model and print what works")
    check_parser.set_defaults(run=check, log_level=logging.WARNING)
    check_command.add_arguments(check_parser)
    _add_locale(check_parser)
    bench_parser = commands.add_parser("bench", help="load-test a running server")
    bench_parser.set_defaults(run=bench, log_level=logging.INFO)
    bench_options.add_arguments(bench_parser)
    return parser


def _add_locale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--locale",
        default=locale_from_environment(os.environ),
        choices=LOCALES,
        help="language of messages (default: %(default)s)",
    )


def _add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="HuggingFace id, folder or .gguf file; without it, the small model")
    add("--host", default="127.0.0.1", help="address to listen on")
    add(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="host name that clients may use, for example chat.example.com behind a proxy; repeatable",
    )
    add("--port", type=_port, default=8080, help="port to listen on; 0 selects a free port")
    model_options.add_arguments(parser)
    add(
        "--compile",
        action="store_true",
        help="compile the model (Linux, g++): faster answers; the first start takes a minute longer",
    )
    add(
        "--mock",
        choices=["round", "echo", "long"],
        help="answer without a model: sentences in turn, echoes or long texts",
    )
    add("--record", type=Path, metavar="FOLDER", help="record every answer in this folder")
    add("--replay", type=Path, metavar="FOLDER", help="replay the answers recorded in this folder, without a model")
    prompt_options.add_arguments(parser)
    add("--concurrency", type=int, default=2, metavar="N", help="answers generated concurrently")
    add("--queue", type=int, default=5, metavar="N", help="waiting requests beyond these; further ones get 503")
    add("--max-new-tokens", type=int, metavar="N", help="maximum tokens of an answer (those that the context leaves)")
    add("--max-thinking-tokens", type=int, metavar="N", help="maximum tokens of a thought (as many as of an answer)")
    add("--context-len", type=int, metavar="N", help="tokens of prompt and answer (as many as model and memory allow)")
    add(
        "--strict-max-tokens",
        action="store_true",
        help="refuse longer answers to clients of /v1 instead of shortening them",
    )
    add("--temperature", type=float, metavar="T", help="0 (greedy) to 2 (the model's own, or 0.2)")
    add("--top-p", type=float, metavar="P", help="0 (greedy) to 1, off (the model's own, or 0.7)")
    add("--api-key-file", type=Path, metavar="FILE", help=f"API keys of /v1, one per line (or in {API_KEYS})")
    session_options.add_arguments(parser)
