"""Types of the fixtures in conftest.py."""

from __future__ import annotations

from typing import Literal, Protocol, TypedDict, Unpack

from aiohttp_session import AbstractStorage
from playwright.async_api import Page, ViewportSize

from aiochatstream import ChatStream, Delta
from tests.helpers import Server, Stepper
from tests.page.engines import DeltaStepper, PiecewiseEngine


class ContextOptions(TypedDict, total=False):
    """Options of a browser context."""

    locale: str
    viewport: ViewportSize
    has_touch: bool
    is_mobile: bool
    color_scheme: Literal["dark", "light"]
    reduced_motion: Literal["no-preference", "reduce"]
    permissions: list[str]
    ignore_https_errors: bool


class Visit(Protocol):
    """Opens a URL as a new user: each call has its own cookies and storage. With ``clock``, the test sets the time."""

    async def __call__(self, url: str, *, clock: bool = False, **options: Unpack[ContextOptions]) -> Page: ...


class StartServer(Protocol):
    """Starts a server, which is stopped after the test."""

    async def __call__(self, chat_stream: ChatStream, storage: AbstractStorage | None = None) -> Server: ...


class MakeStepper(Protocol):
    """Returns an engine that steps when the test allows it; it may finish after the test."""

    def __call__(self, *, fail_at: int | None = None) -> Stepper: ...


class MakePiecewise(Protocol):
    """Returns an engine that yields each piece on request, and the rest after the test."""

    def __call__(self, *pieces: str) -> PiecewiseEngine: ...


class MakeDeltaStepper(Protocol):
    """Returns an engine that yields each delta on request, and the rest after the test."""

    def __call__(self, *deltas: Delta) -> DeltaStepper: ...
