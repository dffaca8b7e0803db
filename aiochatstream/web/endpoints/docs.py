"""The endpoints' description, for programs and for people."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from aiohttp import hdrs, web

from aiochatstream.web.errors import answers_errors
from aiochatstream.web.json import COMMON_HEADERS, dumps
from aiochatstream.web.openapi import docs_page
from aiochatstream.web.openapi.document import Table, document, mounted

if TYPE_CHECKING:
    from aiochatstream.chat_stream import ChatStream


class Description(NamedTuple):
    """The endpoints of one server in one application: as JSON, and as a page with docs_page.ORIGIN in it."""

    json: bytes
    page: str


class Documents:
    """What was described already, by application: its endpoints do not change once it runs.

    :param tables: all endpoints that there are.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables
        self._made: WeakKeyDictionary[web.Application, Description] = WeakKeyDictionary()

    async def of(self, server: ChatStream, app: web.Application) -> Description:
        """The description of the endpoints of ``server`` in ``app``."""
        if app not in self._made:
            self._made[app] = await asyncio.to_thread(self._describe, server, app)
        return self._made[app]

    def _describe(self, server: ChatStream, app: web.Application) -> Description:
        endpoints = list(mounted(server, app, self._tables))
        described = document(endpoints, overload_status=server.limits.overload_status)
        return Description(dumps(described).encode(), docs_page.render(described))


@answers_errors
async def openapi(server: ChatStream, request: web.Request) -> web.StreamResponse:
    """``GET /openapi.json``: this description of the endpoints, for programs."""
    described = await server.documents.of(server, request.app)
    return web.Response(body=described.json, content_type="application/json", charset="utf-8", headers=COMMON_HEADERS)


@answers_errors
async def docs(server: ChatStream, request: web.Request) -> web.StreamResponse:
    """``GET /docs``: the same as a page to read."""
    described = await server.documents.of(server, request.app)
    scheme = "https" if request.headers.get(hdrs.X_FORWARDED_PROTO) == "https" else request.scheme
    headers = {**COMMON_HEADERS, "Content-Security-Policy": docs_page.CONTENT_SECURITY_POLICY}
    page = described.page.replace(docs_page.ORIGIN, escape(f"{scheme}://{request.host}"))
    return web.Response(text=page, content_type="text/html", headers=headers)
