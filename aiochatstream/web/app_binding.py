"""Where in an application a ChatStream is, and whose sessions it uses there.

Several can share the sessions of one application, each under a namespace of its own.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Iterator
from types import FunctionType

from aiohttp import web
from aiohttp_session import STORAGE_KEY, AbstractStorage, SimpleCookieStorage

from aiochatstream.errors import SessionsNotSetUp
from aiochatstream.sessions import SESSIONS_HINT
from aiochatstream.web.auth.addresses import hosts_of, is_loopback_host

logger = logging.getLogger(__name__)


class AppBinding:
    """The place of one ChatStream.

    :param namespace: what its conversations and roles go by in the sessions; no other's there.
    :param cross_origin: pages of other origins are to reach it with their session's cookie.
    :param grants_roles: sessions are to hold roles.
    """

    def __init__(self, namespace: str, *, cross_origin: bool, grants_roles: bool) -> None:
        self.namespace = namespace
        self._cross_origin = cross_origin
        self._grants_roles = grants_roles
        self._app: web.Application | None = None
        self._storage: AbstractStorage | None = None
        self._needs_sessions = False
        self._warned = False

    def enter(self, app: web.Application, *, sessions: bool) -> bool:
        """Be in ``app``; False where that is so already. Raises RuntimeError for a second app.

        :param sessions: whether it takes some there.
        """
        self._needs_sessions |= sessions
        if self._app is app:
            return False
        if self._app is not None:
            raise RuntimeError("This ChatStream is set up in another application; make one ChatStream for each.")
        self._app = app
        app.setdefault(BINDINGS, []).append(self)
        app.cleanup_ctx.append(self._stay_in)
        return True

    async def _stay_in(self, app: web.Application) -> AsyncIterator[None]:
        yield
        self._app = self._storage = None  # the app has ended; another may begin
        self._needs_sessions = False

    def check_start(self, app: web.Application) -> None:
        """When ``app`` starts: raises SessionsNotSetUp where it is certain that there are none, or as :meth:`check`."""
        # a sub-app is frozen before its start; its parent's sessions cannot be seen from it
        if self._needs_sessions and not app.pre_frozen and not has_sessions(app):
            raise SessionsNotSetUp(f"ChatStream needs sessions: {SESSIONS_HINT}, before chat_stream.setup(app).")
        for middleware in _session_middlewares(app):
            storage = inspect.getclosurevars(middleware).nonlocals.get("storage")
            if isinstance(storage, AbstractStorage):  # if not, the first request shows it
                self._use(storage, app)

    def check(self, request: web.Request) -> None:
        """Raises SessionsNotSetUp where the sessions of ``request`` hold another ChatStream's of the same namespace, or
        cannot hold roles.
        """
        storage = request.get(STORAGE_KEY)
        if storage is not None and storage is not self._storage:
            self._use(storage, request.match_info.apps[0])
        if storage is None or self._warned or storage.cookie_params["secure"]:
            return
        if not all(map(is_loopback_host, hosts_of(request))):
            self._warned = True
            logger.warning(
                "The session cookie %s goes over plain HTTP to other machines (this request came by the name %s): who "
                "listens on the way can take over the session. Serve HTTPS, and give the storage secure=True.",
                storage.cookie_name,
                request.host,
            )

    def _use(self, storage: AbstractStorage, root: web.Application) -> None:
        for other in _bindings_in(root):
            if other is not self and other._storage is storage and other.namespace == self.namespace:
                raise SessionsNotSetUp(
                    f"Two ChatStreams use the same sessions with the same namespace {self.namespace!r}: make them with "
                    f"different ones, ChatStream(namespace='...')."
                )
        if self._grants_roles and isinstance(storage, SimpleCookieStorage):
            raise SessionsNotSetUp(
                "client_roles: with SimpleCookieStorage everybody writes into the session what they like, and so takes "
                "any role. Use MemoryStorage, or another storage that clients cannot write into."
            )
        self._storage = storage
        cookie = storage.cookie_params
        # samesite is None where the cookie says nothing of it, which browsers take for Lax
        if self._cross_origin and not ((cookie["samesite"] or "").lower() == "none" and cookie["secure"]):
            logger.warning(
                "allowed_origins is set, but the cookie %s is not SameSite=None and Secure: browsers will not send it "
                "from pages of other sites, and each of their messages begins a new conversation. Give the session "
                "storage samesite='None' and secure=True (which takes HTTPS).",
                storage.cookie_name,
            )


BINDINGS: web.AppKey[list[AppBinding]] = web.AppKey("aiochatstream_places", list[AppBinding])


def has_sessions(app: web.Application) -> bool:
    """Whether ``app`` itself has aiohttp-session, not a parent of it."""
    return any(_session_middlewares(app))


def _session_middlewares(app: web.Application) -> Iterator[FunctionType]:
    for middleware in app.middlewares:
        if isinstance(middleware, FunctionType) and middleware.__module__ == "aiohttp_session":
            yield middleware


def _bindings_in(app: web.Application) -> Iterator[AppBinding]:
    yield from app.get(BINDINGS, ())
    for resource in app.router.resources():
        inner = resource.get_info().get("app")
        if isinstance(inner, web.Application):
            yield from _bindings_in(inner)
