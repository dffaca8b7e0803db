"""Configuration of the chat page: texts, colours, and its content security policy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from aiochatstream.params import STRICT, validated
from aiochatstream.texts import Locale
from aiochatstream.web.page_files import PageFiles

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
"""Content-Security-Policy of the page: only resources of its own origin, and HTML only from DOMPurify."""

Line = Annotated[str, Field(min_length=1, max_length=200)]
Paragraph = Annotated[str, Field(min_length=1, max_length=2000)]
Examples = Annotated[list[Line], Field(max_length=8)]
Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$", description="a colour as '#1a7f64'")]
Ancestor = Annotated[str, Field(pattern=r"^('self'|https?://[A-Za-z0-9.*:\[\]-]+)$")]


class WebUiParams(BaseModel):
    """Texts and colours of the chat page. A text is a string, or a dict by language: ``{"en": ..., "ja": ...}``.

    title: title of the page.
    welcome: text of an empty conversation.
    avatar: the model's avatar: 1 to 4 characters (for example an emoji), an image of this origin, or ``data:image/``.
    accent, accent_dark: colour of buttons and links on a light and on a dark background; ``accent_dark`` defaults to
        ``accent``.
    examples: up to 8 example messages, shown in an empty conversation.
    locale, theme: defaults for users who have not chosen; absent, the preferences of their browsers.
    frame_ancestors: origins whose pages may embed this one in a frame, ``'self'`` for its own; none by default.
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
    """The chat page of a server. Its files are read at the first request.

    :param params: see :class:`WebUiParams`.

    Raises ValueError, with the field in the message.
    """

    def __init__(self, params: object) -> None:
        if not isinstance(params, Mapping):
            raise ValueError(f"web_ui_params: must be a dict, not {params!r}.")
        for name in params:
            if name not in WebUiParams.model_fields:
                raise ValueError(
                    f"web_ui_params: unknown field {name!r}; choose from {', '.join(WebUiParams.model_fields)}."
                )
        try:
            self.params = validated(WebUiParams, dict(params))
        except ValueError as error:
            raise ValueError(f"web_ui_params.{error}") from None
        ancestors = " ".join(self.params.frame_ancestors) or "'none'"
        self.policy = "; ".join((*POLICY, f"frame-ancestors {ancestors}"))
        self._files: PageFiles | None = None

    async def files(self) -> PageFiles:
        """Return the page's files. Raises OSError."""
        if self._files is None:
            self._files = await asyncio.to_thread(PageFiles.read)
        return self._files
