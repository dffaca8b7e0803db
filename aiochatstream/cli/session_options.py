"""Options of ``aiochatstream serve`` for sessions and conversations."""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp_session import AbstractStorage
from cryptography.fernet import Fernet

from aiochatstream.chat_stream import ChatStream
from aiochatstream.conversations.store import ConversationStore
from aiochatstream.extras import requires_extra
from aiochatstream.sessions import CookieStorage, MemoryStorage
from aiochatstream.texts import Texts
from aiochatstream.web.auth.secret_files import read_secrets

logger = logging.getLogger(__name__)

SECRET_KEY = "AIOCHATSTREAM_SECRET_KEY"  # noqa: S105 - the name of a variable
REDIS_URL = "REDIS_URL"
NEW_KEY = "python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to ``parser``."""
    add = parser.add_argument
    add("--session", default="memory", choices=["memory", "cookie", "redis"], help="where conversations are stored")
    add(
        "--secret-key-file",
        type=Path,
        metavar="FILE",
        help=f"keys of --session cookie, one per line, newest first (or in {SECRET_KEY})",
    )
    add("--redis", metavar="URL", help=f"redis://HOST:PORT of --session redis (or in {REDIS_URL})")
    add("--dev", action="store_true", help="--session cookie with a temporary key, for development")
    add("--secure", action="store_true", help="send cookies over HTTPS only (for use behind an HTTPS proxy)")


class Sessions(NamedTuple):
    """Storages of sessions and conversations.

    store: None uses the default for the session storage.
    connection: cleanup context of the app that closes their connection.
    redis: client of Redis; None without.
    """

    storage: AbstractStorage
    store: ConversationStore | None = None
    connection: Callable[[web.Application], AsyncIterator[None]] | None = None
    redis: Any = None


def configure(options: argparse.Namespace, texts: Texts, environment: Mapping[str, str]) -> Sessions:
    """Return the storages that the options specify. Raise ValueError and OSError."""
    if options.session != "cookie" and (options.secret_key_file is not None or options.dev):
        raise ValueError(texts.key_file_without_cookie)
    if options.session != "redis" and options.redis is not None:
        raise ValueError(texts.redis_without_session)
    if options.session == "redis":
        return _redis(options, texts, environment)
    if options.session == "memory":
        return Sessions(MemoryStorage(secure=options.secure))
    return Sessions(CookieStorage(_keys(options, texts, environment), secure=options.secure))


def share_queue(chat_stream: ChatStream, sessions: Sessions, model: str | None) -> None:
    """Share slots and queue of a model with other processes that use the same Redis.

    :param model: name of the model for clients; None for the only one.
    """
    name = "serve" if model is None else f"serve-{hashlib.sha256(model.encode()).hexdigest()[:16]}"
    chat_stream.share_queue(sessions.redis, name)


def _redis(options: argparse.Namespace, texts: Texts, environment: Mapping[str, str]) -> Sessions:
    url = options.redis or environment.get(REDIS_URL)
    if not url:
        raise ValueError(texts.no_redis_url.format(variable=REDIS_URL))
    with requires_extra("redis"):
        from redis.asyncio import Redis

        from aiochatstream.conversations.redis_store import RedisConversationStore
        from aiochatstream.sessions.redis_storage import RedisStorage

    redis = Redis.from_url(url)

    async def connection(app: web.Application) -> AsyncIterator[None]:
        yield
        await redis.aclose()

    return Sessions(RedisStorage(redis, secure=options.secure), RedisConversationStore(redis), connection, redis)


def _keys(options: argparse.Namespace, texts: Texts, environment: Mapping[str, str]) -> list[str]:
    if options.dev:
        logger.warning(texts.dev_key)
        return [Fernet.generate_key().decode()]
    if options.secret_key_file is not None:
        source, text = str(options.secret_key_file), read_secrets(options.secret_key_file)
    else:
        source, text = SECRET_KEY, environment.get(SECRET_KEY, "")
        if not text.strip():
            raise ValueError(texts.no_key_file.format(command=NEW_KEY, variable=SECRET_KEY))
    keys: list[str] = text.split()
    try:
        CookieStorage(keys)
    except ValueError:
        raise ValueError(texts.no_key.format(file=source, command=NEW_KEY)) from None
    return keys
