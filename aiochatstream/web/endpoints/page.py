"""Endpoints for the chat page: its files and its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from aiohttp import ETag, hdrs, web

from aiochatstream.errors import NotFound
from aiochatstream.web.accept import accepts_gzip
from aiochatstream.web.auth.access import check_access
from aiochatstream.web.errors import ServerHandler, handle_errors, json_endpoint
from aiochatstream.web.json import json_response
from aiochatstream.web.page_files import PageFile
from aiochatstream.web.server import Server

IMMUTABLE = "public, max-age=31536000, immutable"


@json_endpoint
async def webui_index(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /``: the chat page. Browsers revalidate it on each visit."""
    files = await server.page.files()
    headers = {
        hdrs.CACHE_CONTROL: "no-cache",
        "Content-Security-Policy": server.page.policy,
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "X-DNS-Prefetch-Control": "off",  # otherwise browsers resolve the hosts of links in answers, despite the policy
    }
    if any(tag.value in (files.version, "*") for tag in request.if_none_match or ()):
        response = web.Response(status=304, headers=headers)
    else:
        response = _response(request, files.index, headers)
    response.etag = ETag(files.version, is_weak=True)  # the same for each encoding
    return response


@handle_errors
async def page_file(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /page/{version}/{name}``: a file of the page, which caches can keep permanently."""
    files = await server.page.files()
    version, name = request.match_info["version"], request.match_info["name"]
    file = files.files.get(name) if version == files.version else None
    if file is None:
        raise NotFound(f"There is nothing at {request.path}.")
    return _response(request, file, {hdrs.CACHE_CONTROL: IMMUTABLE})


@handle_errors
async def ui_config(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /ui_config``: the page's texts and colours, and the rights of the client's role."""
    role = await check_access(server, request, "webui_index")
    config: dict[str, Any] = {
        **server.page.params.model_dump(exclude={"frame_ancestors"}),
        "role": role.name,
        "allow": "all" if role.allow is None else sorted(role.allow),
        "dev_tool": role.enable_dev_tool,
        "system_prompt": server.allow_system_prompt,
        "max_new_tokens": server.params.max_new_tokens,
        "thinking": server.params.thinking,
        "thinking_levels": None if server.state == "starting" else list(server.thinking_levels),
    }
    return json_response(config)


PARTS: Mapping[str, ServerHandler[...]] = MappingProxyType(
    {"/page/{version}/{name:.+}": page_file, "/ui_config": ui_config}
)
"""Handlers that the page needs, by path."""


def _response(request: web.Request, file: PageFile, headers: dict[str, str]) -> web.Response:
    use_gzip = accepts_gzip(request.headers.getall(hdrs.ACCEPT_ENCODING, ()))
    response = web.Response(
        body=file.gzipped if use_gzip else file.body,
        content_type=file.content_type,
        charset="utf-8",
        headers={**headers, hdrs.VARY: hdrs.ACCEPT_ENCODING, "X-Content-Type-Options": "nosniff"},
    )
    if use_gzip:
        response.headers[hdrs.CONTENT_ENCODING] = "gzip"
    return response
