"""The chat page: how its files go out, and what the server tells it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from aiohttp import ETag, hdrs, web
from pydantic import BaseModel, Field

from aiochatstream.errors import NotFound
from aiochatstream.params import STRICT, validated
from aiochatstream.texts import Locale
from aiochatstream.web.accept import accepts_gzip
from aiochatstream.web.auth.access import check_access
from aiochatstream.web.errors import ServerHandler, answers_all_errors, answers_errors
from aiochatstream.web.json import json_response
from aiochatstream.web.page_files import PageFile, PageFiles

if TYPE_CHECKING:
    from aiochatstream.chat_stream import ChatStream

POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "connect-src 'self'",
    "font-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types dompurify",
)
"""What the page may load and do: nothing of other origins, and no HTML that DOMPurify has not seen."""

FOR_EVER = "public, max-age=31536000, immutable"

Line = Annotated[str, Field(min_length=1, max_length=200)]
Paragraph = Annotated[str, Field(min_length=1, max_length=2000)]
Examples = Annotated[list[Line], Field(max_length=8)]
Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$", description="a colour as '#1a7f64'")]
Ancestor = Annotated[str, Field(pattern=r"^('self'|https?://[A-Za-z0-9.*:\[\]-]+)$")]


class WebUiParams(BaseModel):
    """What the chat page looks like and says. A text is a string, or one for each language: ``{"en": ..., "ja": ...}``.

    title: the name of the page.
    welcome: what stands in an empty conversation.
    avatar: who answers: one to four characters (an emoji, say), or an image of this origin or ``data:image/``.
    accent, accent_dark: colour of buttons and links on light and on dark ground; the second is the first if absent.
    examples: up to 8 messages that an empty conversation offers.
    locale, theme: what users see who have chosen nothing; absent, what their browsers ask for.
    frame_ancestors: origins whose pages may show this one in a frame, ``'self'`` for this one; none by default.
    """

    model_config = STRICT

    title: Line | dict[Locale, Line] | None = Field(
        None, description="a string of 1 to 200 characters, or one by language"
    )
    welcome: Paragraph | dict[Locale, Paragraph] | None = Field(
        None, description="a string of 1 to 2000 characters, or one by language"
    )
    avatar: Annotated[
        str,
        Field(
            pattern=r"^(|.{1,4}|data:image/.*|[A-Za-z0-9_./-]+\.[A-Za-z]+)$",
            description="1 to 4 characters, a path of this origin, or data:image/...",
        ),
    ] = ""
    accent: Colour | None = None
    accent_dark: Colour | None = None
    examples: Examples | dict[Locale, Examples] | None = Field(
        None, description="a list of up to 8 strings of 1 to 200 characters, or one by language"
    )
    locale: Literal["en", "ja"] | None = Field(None, description="'en' or 'ja'")
    theme: Literal["light", "dark"] | None = Field(None, description="'light' or 'dark'")
    frame_ancestors: Annotated[list[Ancestor], Field(description="a list of \"'self'\" or 'https://app.example'")] = (
        Field(default_factory=list)
    )


class Page:
    """The page of one server. Its files are read at the first request.

    :param params: see :class:`WebUiParams`. Raises ValueError that names the field.
    """

    def __init__(self, params: object) -> None:
        if not isinstance(params, Mapping):
            raise ValueError(f"web_ui_params: must be a dict, not {params!r}.")
        for name in params:
            if name not in WebUiParams.model_fields:
                raise ValueError(f"web_ui_params: has {', '.join(WebUiParams.model_fields)}, but no {name!r}.")
        try:
            self.params = validated(WebUiParams, dict(params))
        except ValueError as error:
            raise ValueError(f"web_ui_params.{error}") from None
        ancestors = " ".join(self.params.frame_ancestors) or "'none'"
        self.policy = "; ".join((*POLICY, f"frame-ancestors {ancestors}"))
        self._files: PageFiles | None = None

    async def files(self) -> PageFiles:
        """What there is to send."""
        if self._files is None:
            self._files = await asyncio.to_thread(PageFiles.read)
        return self._files


@answers_errors
async def webui_index(server: ChatStream, request: web.Request) -> web.StreamResponse:
    """``GET /``: the page. A browser asks each time whether it is still the same."""
    files = await server.page.files()
    headers = {
        hdrs.CACHE_CONTROL: "no-cache",
        "Content-Security-Policy": server.page.policy,
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "X-DNS-Prefetch-Control": "off",  # no policy stops a browser from looking up the hosts of a model's links
    }
    known = request.if_none_match or ()
    if any(tag.value in (files.version, "*") for tag in known):
        response = web.Response(status=304, headers=headers)
    else:
        response = _response(request, files.index, headers)
    response.etag = ETag(files.version, is_weak=True)  # the same for each encoding
    return response


@answers_all_errors
async def page_file(server: ChatStream, request: web.Request) -> web.StreamResponse:
    """``GET /page/{version}/{name}``: a file of the page, the same for everyone and for ever."""
    files = await server.page.files()
    version, name = request.match_info["version"], request.match_info["name"]
    file = files.files.get(name) if version == files.version else None
    if file is None:
        raise NotFound(f"There is nothing at {request.path}.")
    return _response(request, file, {hdrs.CACHE_CONTROL: FOR_EVER})


@answers_all_errors
async def ui_config(server: ChatStream, request: web.Request) -> web.StreamResponse:
    """``GET /ui_config``: the owner's texts and colours, and what this client's role may do."""
    role = await check_access(server, request, "webui_index")
    config: dict[str, Any] = {
        **server.page.params.model_dump(exclude={"frame_ancestors"}),
        "role": role.name,
        "allow": "all" if role.allow is None else sorted(role.allow),
        "dev_tool": role.enable_dev_tool,
        "system_prompt": server.allow_system_prompt,
        "max_new_tokens": server.params.max_new_tokens,
    }
    return json_response(config)


PARTS: Mapping[str, ServerHandler[...]] = MappingProxyType(
    {"/page/{version}/{name:.+}": page_file, "/ui_config": ui_config}
)
"""What the page is of no use without, by path."""


def _response(request: web.Request, file: PageFile, headers: dict[str, str]) -> web.Response:
    zipped = accepts_gzip(request.headers.getall(hdrs.ACCEPT_ENCODING, ()))
    response = web.Response(
        body=file.gzipped if zipped else file.body,
        content_type=file.content_type,
        charset="utf-8",
        headers={**headers, hdrs.VARY: hdrs.ACCEPT_ENCODING, "X-Content-Type-Options": "nosniff"},
    )
    if zipped:
        response.headers[hdrs.CONTENT_ENCODING] = "gzip"
    return response
