"""The binding of a ChatStream to an application and its sessions.

Several ChatStreams can share the sessions of an application, each under its own namespace.
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
    """The application that a ChatStream is set up in, and the session storage used there.

    :param namespace: prefix of the ChatStream's conversations and roles in the sessions, unique in the application.
    :param cross_origin: whether pages of other origins use the session cookie.
    :param grants_roles: whether sessions hold granted roles.
    """

    def __init__(self, namespace: str, *, cross_origin: bool, grants_roles: bool) -> None:
        self.namespace = namespace
        self._cross_origin = cross_origin
        self._grants_roles = grants_roles
        self._app: web.Application | None = None
        self._storage: AbstractStorage | None = None
        self._needs_sessions = False
        self._warned = False

    def bind(self, app: web.Application, *, sessions: bool) -> bool:
        """Bind to ``app``; return False if already bound to it. Raise RuntimeError if bound to another application.

        :param sessions: whether the endpoints there need sessions.
        """
        self._needs_sessions |= sessions
        if self._app is app:
            return False
        if self._app is not None:
            raise RuntimeError("This ChatStream is set up in another application; make one ChatStream for each.")
        self._app = app
        app.setdefault(BINDINGS, []).append(self)
        app.cleanup_ctx.append(self._unbind_on_cleanup)
        return True

    async def _unbind_on_cleanup(self, app: web.Application) -> AsyncIterator[None]:
        yield
        self._app = self._storage = None
        self._needs_sessions = False

    def check_startup(self, app: web.Application) -> None:
        """Raise SessionsNotSetUp if endpoints need sessions and ``app`` certainly lacks them, and the errors of
        :meth:`check_request`.
        """
        if not self._needs_sessions:
            return
        # a sub-app is frozen before its start, and cannot see the sessions of its parent
        if not app.pre_frozen and not has_sessions(app):
            raise SessionsNotSetUp(f"ChatStream needs sessions: {SESSIONS_HINT}, before chat_stream.setup(app).")
        for middleware in _session_middlewares(app):
            storage = inspect.getclosurevars(middleware).nonlocals.get("storage")
            if isinstance(storage, AbstractStorage):  # if not, the first request checks it
                self._use_storage(storage, app)

    def check_request(self, request: web.Request) -> None:
        """Raise SessionsNotSetUp if another ChatStream uses these sessions with the same namespace, or if clients could
        edit the roles in them.
        """
        storage = request.get(STORAGE_KEY)
        if storage is not None and storage is not self._storage:
            self._use_storage(storage, request.match_info.apps[0])
        if storage is None or self._warned or storage.cookie_params["secure"]:
            return
        if not all(map(is_loopback_host, hosts_of(request))):
            self._warned = True
            logger.warning(
                "Session cookie %s was sent over plain HTTP to host %s: anyone on the network path can hijack the "
                "session. Serve HTTPS, and set secure=True on the session storage.",
                storage.cookie_name,
                request.host,
            )

    def _use_storage(self, storage: AbstractStorage, root: web.Application) -> None:
        for other in _bindings_in(root):
            if other is not self and other._storage is storage and other.namespace == self.namespace:
                raise SessionsNotSetUp(
                    f"Two ChatStreams use the same sessions and the same namespace {self.namespace!r}. Give each a "
                    f"namespace of its own: ChatStream(namespace='...')."
                )
        if self._grants_roles and isinstance(storage, SimpleCookieStorage):
            raise SessionsNotSetUp(
                "client_roles: cannot be used with SimpleCookieStorage: clients can edit its cookies and grant "
                "themselves any role. Use MemoryStorage, or another storage that clients cannot edit."
            )
        self._storage = storage
        cookie = storage.cookie_params
        # browsers treat an absent SameSite as Lax
        if self._cross_origin and not ((cookie["samesite"] or "").lower() == "none" and cookie["secure"]):
            logger.warning(
                "allowed_origins is set, but the cookie %s is not SameSite=None and Secure: browsers do not send it "
                "from pages of other sites, and each message from there begins a new conversation. Set samesite='None' "
                "and secure=True on the session storage (requires HTTPS).",
                storage.cookie_name,
            )


BINDINGS: web.AppKey[list[AppBinding]] = web.AppKey("aiochatstream_places", list[AppBinding])


def has_sessions(app: web.Application) -> bool:
    """Return True if aiohttp-session is set up in ``app`` itself; its parents are not examined."""
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
