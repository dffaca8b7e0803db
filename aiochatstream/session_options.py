"""The options of ``aiochatstream serve`` that say where conversations live."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

from aiohttp_session import AbstractStorage
from cryptography.fernet import Fernet

from aiochatstream.messages import Messages
from aiochatstream.sessions import CookieStorage, MemoryStorage

logger = logging.getLogger(__name__)

SECRET_KEY = "AIOCHATSTREAM_SECRET_KEY"  # noqa: S105 - the name of a variable
NEW_KEY = "python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put the options on ``parser``."""
    add = parser.add_argument
    add("--session", default="memory", choices=["memory", "cookie"], help="where conversations live")
    add(
        "--secret-key-file",
        type=Path,
        metavar="FILE",
        help=f"the keys of --session cookie, a line each, the newest first; else those of {SECRET_KEY}",
    )
    add("--dev", action="store_true", help="--session cookie with a key made at this start, for trying things out")
    add("--secure", action="store_true", help="send cookies over HTTPS only (behind a proxy that speaks HTTPS)")


def storage_of(options: argparse.Namespace, messages: Messages, environment: Mapping[str, str]) -> AbstractStorage:
    """The session storage that the options ask for. Raises ValueError and OSError with a sentence."""
    if options.session == "memory":
        if options.secret_key_file is not None or options.dev:
            raise ValueError(messages.key_file_alone)
        return MemoryStorage(secure=options.secure)
    return CookieStorage(_keys(options, messages, environment), secure=options.secure)


def _keys(options: argparse.Namespace, messages: Messages, environment: Mapping[str, str]) -> list[str]:
    if options.dev:
        logger.warning(messages.dev_key)
        return [Fernet.generate_key().decode()]
    if options.secret_key_file is not None:
        source, text = (
            str(options.secret_key_file),
            options.secret_key_file.read_text(encoding="ascii", errors="replace"),
        )
    else:
        source, text = SECRET_KEY, environment.get(SECRET_KEY, "")
        if not text.strip():
            raise ValueError(messages.no_key_file.format(command=NEW_KEY, variable=SECRET_KEY))
    keys: list[str] = text.split()
    try:
        CookieStorage(keys)
    except ValueError:
        raise ValueError(messages.no_key.format(file=source, command=NEW_KEY)) from None
    return keys
