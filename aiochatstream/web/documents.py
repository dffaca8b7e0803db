"""The endpoints' description, for programs and for people."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from aiohttp import hdrs, web

from aiochatstream.web import docs_page
from aiochatstream.web.errors import answers_errors
from aiochatstream.web.json import COMMON_HEADERS, json_response
from aiochatstream.web.openapi import Table, document, mounted

if TYPE_CHECKING:
    from aiochatstream.chat_stream import ChatStream


class Documents:
    """What was described already, by application: its endpoints do not change once it runs.

    :param tables: all endpoints that there are.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables
        self._made: WeakKeyDictionary[web.Application, dict[str, Any]] = WeakKeyDictionary()

    async def of(self, server: ChatStream, app: web.Application) -> dict[str, Any]:
        """The OpenAPI document of the endpoints of ``server`` in ``app``."""
        if app not in self._made:
            self._made[app] = await asyncio.to_thread(self._describe, server, app)
        return self._made[app]

    def _describe(self, server: ChatStream, app: web.Application) -> dict[str, Any]:
        endpoints = list(mounted(server, app, self._tables))
        return document(endpoints, overload_status=server.limits.overload_status)


@answers_errors
async def openapi(server: ChatStream, request: web.Request) -> web.StreamResponse:
    """``GET /openapi.json``: this description of the endpoints, for programs."""
    return json_response(await server.documents.of(server, request.app))


@answers_errors
async def docs(server: ChatStream, request: web.Request) -> web.StreamResponse:
    """``GET /docs``: the same as a page to read."""
    described = await server.documents.of(server, request.app)
    scheme = "https" if request.headers.get(hdrs.X_FORWARDED_PROTO) == "https" else request.scheme
    headers = {**COMMON_HEADERS, "Content-Security-Policy": docs_page.CONTENT_SECURITY_POLICY}
    return web.Response(
        text=docs_page.render(described, f"{scheme}://{request.host}"),
        content_type="text/html",
        headers=headers,
    )
