"""Endpoints that describe the endpoints, as OpenAPI and as a page."""

from __future__ import annotations

import asyncio
from html import escape

from aiohttp import hdrs, web

from aiochatstream.web.errors import json_endpoint
from aiochatstream.web.json import COMMON_HEADERS, dumps
from aiochatstream.web.openapi import docs_page
from aiochatstream.web.openapi.docs_page import Description
from aiochatstream.web.openapi.document import document, mounted_endpoints
from aiochatstream.web.server import Server


async def describe(server: Server, app: web.Application) -> Description:
    """Return the description of the endpoints of ``server`` in ``app``, which is generated once: they do not change."""

    def generate() -> Description:
        description = document(list(mounted_endpoints(server, app)), overload_status=server.limits.overload_status)
        return Description(dumps(description).encode(), docs_page.render(description))

    if app not in server.descriptions:
        server.descriptions[app] = await asyncio.to_thread(generate)
    return server.descriptions[app]


@json_endpoint
async def openapi(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /openapi.json``: this description of the endpoints, in OpenAPI's format."""
    description = await describe(server, request.app)
    return web.Response(body=description.json, content_type="application/json", charset="utf-8", headers=COMMON_HEADERS)


@json_endpoint
async def docs(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /docs``: the description of the endpoints as a page."""
    description = await describe(server, request.app)
    scheme = "https" if request.headers.get(hdrs.X_FORWARDED_PROTO) == "https" else request.scheme
    headers = {**COMMON_HEADERS, "Content-Security-Policy": docs_page.CONTENT_SECURITY_POLICY}
    page = description.page.replace(docs_page.ORIGIN, escape(f"{scheme}://{request.host}"))
    return web.Response(text=page, content_type="text/html", headers=headers)
