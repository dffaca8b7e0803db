"""The command ``aiochatstream``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from aiochatstream import terminal
from aiochatstream.bench import options as bench_options
from aiochatstream.cli import check as check_command
from aiochatstream.cli import serve as serve_command
from aiochatstream.cli import serve_options
from aiochatstream.console import options as console_options
from aiochatstream.errors import ChatStreamError
from aiochatstream.extras import MissingExtra, requires_extra
from aiochatstream.runtime.daemon_threads import any_daemon_thread
from aiochatstream.texts import LOCALES, locale_from_environment, texts_for

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
    """Run ``aiochatstream serve``: serve models until SIGTERM or Ctrl-C."""
    failure = serve_command.run(options)
    return _exit(0 if failure is None else _print_error(failure))


def chat(options: argparse.Namespace) -> int:
    """Run ``aiochatstream chat``: chat with a model or a running server."""
    with requires_extra("chat"):
        from aiochatstream.console import command  # not needed to serve

    return _exit(command.main(options, texts_for(options.locale)))


def check(options: argparse.Namespace) -> int:
    """Run ``aiochatstream check``: load a model and print its capabilities and problems."""
    return _exit(check_command.main(options))


def bench(options: argparse.Namespace) -> int:
    """Run ``aiochatstream bench``: load-test a running server."""
    from aiochatstream.bench import command  # not needed to serve

    return command.main(options, serve_command.new_event_loop)


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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aiochatstream", description="A streaming chat with a HuggingFace model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve_parser = commands.add_parser(
        "serve", help="serve a model over HTTP", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    serve_parser.set_defaults(run=serve, log_level=logging.INFO)
    serve_options.add_arguments(serve_parser)
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
