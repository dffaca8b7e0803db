"""Several ChatStreams behind one OpenAI API: the name of the model chooses among them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

from aiohttp import web

from aiochatstream.chat_stream import ChatStream
from aiochatstream.validation import alternatives
from aiochatstream.web.openai import routes
from aiochatstream.web.openai.endpoint_context import EndpointContext
from aiochatstream.web.openai.keys import ApiKeys


class Models:
    """Several ChatStreams behind one OpenAI API, each with its own engine, slots, queue and metrics.

    ::

        models = Models({"small": ChatStream(model=..., tokenizer=...), "big": ChatStream(engine=UpstreamEngine(...))})
        models.setup_openai(app)

    :param chat_streams: ChatStreams by the names by which clients request them. The first one's ``allowed_hosts``,
        ``allowed_origins``, and limits on bodies apply to all.
    :param default: name of the model of requests without a name; None for the only model. With several models and no
        default, such a request is refused.

    Raises TypeError for something other than ChatStreams, and ValueError for an invalid name.
    """

    def __init__(self, chat_streams: Mapping[str, ChatStream], *, default: str | None = None) -> None:
        if not isinstance(chat_streams, Mapping):
            raise TypeError(f"chat_streams: must be a mapping of names to ChatStreams, not {chat_streams!r}.")
        if not chat_streams:
            raise ValueError("chat_streams: must contain at least one ChatStream.")
        for name, chat_stream in chat_streams.items():
            if not isinstance(name, str) or not name:
                raise ValueError(f"chat_streams: names must be non-empty strings, not {name!r}.")
            if not isinstance(chat_stream, ChatStream):
                raise TypeError(f"chat_streams: {name!r} must be a ChatStream, not {chat_stream!r}.")
        if default is not None and default not in chat_streams:
            raise ValueError(f"default: must be {alternatives(list(chat_streams))}, not {default!r}.")
        self._chat_streams = dict(chat_streams)
        self._default = next(iter(chat_streams)) if len(chat_streams) == 1 else default

    def __repr__(self) -> str:
        return f"<Models {', '.join(self._chat_streams)}>"

    def setup_openai(
        self,
        app: web.Application,
        prefix: str = "/v1",
        api_keys: Sequence[str] | os.PathLike[str] | ApiKeys | None = None,
    ) -> None:
        """Add OpenAI's API to ``app``, and register startup and cleanup of all ChatStreams.

        Each of them may also have other endpoints in the same application, see :meth:`ChatStream.setup_openai`, which
        also describes the parameters and the errors. During a shutdown all of them drain at the same time.
        """
        keys = api_keys if isinstance(api_keys, ApiKeys) else ApiKeys(api_keys)
        first, default = next(iter(self._chat_streams.values())), self._chat_streams.get(self._default or "")
        routes.setup(app, first, EndpointContext(keys, self._chat_streams, default), prefix)
        app.on_shutdown.insert(0, self._shut_down)  # before that of the first one, which closes all connections
        for chat_stream in self._chat_streams.values():
            chat_stream.bind(app, sessions=False)

    async def _shut_down(self, app: web.Application) -> None:
        await asyncio.gather(*(chat_stream.shut_down() for chat_stream in self._chat_streams.values()))
