"""The server that the endpoints belong to: an engine, its users, and the state that requests share."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp_session
from aiohttp import web
from pydantic import ValidationError

from aiochatstream.conversations.store import ConversationStore
from aiochatstream.errors import InvalidValue
from aiochatstream.params import EFFORT_LEVELS, THINKING_VARIABLES, ParamOverrides, WireFormat
from aiochatstream.runtime.chat import Chat
from aiochatstream.runtime.served_model import RuntimeConfig
from aiochatstream.runtime.stateless import Stateless
from aiochatstream.sessions import (
    AgentSession,
    CookieUserSession,
    UserSession,
    is_agent,
    keeps_data_in_cookie,
    load_session,
    recent_params,
    reload_session,
)
from aiochatstream.sessions.aiohttp_session_internals import is_changed
from aiochatstream.validation import alternatives
from aiochatstream.web.app_binding import AppBinding
from aiochatstream.web.auth.allowed_hosts import AllowedHosts
from aiochatstream.web.auth.origins import normalize_origins
from aiochatstream.web.auth.rate_limit import HEADER_WARNING, phrase_attempts
from aiochatstream.web.auth.roles import Roles
from aiochatstream.web.feedback import FeedbackCallback, Ratings
from aiochatstream.web.openapi.docs_page import Description
from aiochatstream.web.page_config import Page
from aiochatstream.web.streaming.active_requests import ActiveRequests
from aiochatstream.web.streaming.callbacks import Callbacks
from aiochatstream.web.streaming.disconnects import DisconnectWatcher
from aiochatstream.web.uploads import TOTAL_BYTES, Uploads


class Server(Chat, Stateless):
    """The state and the services of the endpoints. :class:`~aiochatstream.ChatStream` describes the parameters.

    :param endpoints: names of the endpoints, for ``client_roles``.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        endpoints: Collection[str],
        name: str,
        namespace: str,
        client_roles: Mapping[str, Any] | None,
        allowed_hosts: Collection[str] | None,
        allowed_origins: Collection[str],
        allow_metrics: Callable[[web.Request], bool],
        allow_system_prompt: bool,
        conversation_store: ConversationStore | None,
        identify_user: Callable[[web.Request], Awaitable[str | None]] | None,
        on_feedback: FeedbackCallback | None,
        web_ui_params: Mapping[str, Any] | None,
        wire_format: WireFormat,
    ) -> None:
        super().__init__(config)
        self.name = name
        self.wire_format = wire_format
        """Format of answers if the request's headers do not choose one."""
        self.num_gpus: int | None = None
        """Number of GPUs that /get_resource_usage reports; None is all."""
        self.roles = Roles(client_roles, endpoints)
        self.phrase_attempts, self.header_attempts = phrase_attempts(), phrase_attempts(warning=HEADER_WARNING)
        self.allowed_hosts = AllowedHosts(allowed_hosts)
        self.allowed_origins = normalize_origins(allowed_origins)
        self.app_binding = AppBinding(
            namespace, cross_origin=bool(self.allowed_origins), grants_roles=self.roles.can_be_granted
        )
        self.allow_metrics, self.allow_system_prompt = allow_metrics, allow_system_prompt
        self.page = Page({} if web_ui_params is None else web_ui_params)
        self.on_feedback, self.ratings = on_feedback, Ratings()
        self.disconnects = DisconnectWatcher()
        self.callbacks = Callbacks()
        self.uploads = Uploads(self.limits.body_timeout, max(TOTAL_BYTES, 2 * self.limits.max_request_bytes))
        self.active_requests = ActiveRequests(self.limits.write_timeout)
        self.descriptions: WeakKeyDictionary[web.Application, Description] = WeakKeyDictionary()
        """Descriptions of the endpoints, generated once for each application."""
        self._conversation_store = conversation_store
        self._identify_user = identify_user
        self._recent_params = recent_params()

    async def session(self, request: web.Request) -> aiohttp_session.Session:
        """Return the session of ``request``. Raise :class:`~aiochatstream.errors.SessionsNotSetUp`."""
        self.app_binding.check_request(request)
        return await load_session(request)

    async def renew_session(self, request: web.Request) -> None:
        """Give the session a new identity and keep its contents: for the login handler of an application.

        A client that knows the old identity can no longer use the session. Call it before the response begins.
        """
        user = await self._browser_session(request)  # even for a request with an agent's header
        self._forget_prompts(user)
        await user.renew()

    async def user_session(self, request: web.Request) -> UserSession:
        """Return the user of ``request``, with the user's conversations."""
        return AgentSession(request) if is_agent(request) else await self._browser_session(request)

    async def _browser_session(self, request: web.Request) -> UserSession:
        early = request.get(aiohttp_session.SESSION_KEY)
        session = await self.session(request)
        if session is early and not is_changed(session):  # loaded before the body, which may have taken seconds
            await reload_session(request, session)
        account = None if self._identify_user is None else await self._identify_user(request)
        if account is not None and not (isinstance(account, str) and account):  # a shared account would leak answers
            raise TypeError(f"identify_user: must return a non-empty string or None, not {account!r}.")
        in_cookie = self._conversation_store is None and account is None and keeps_data_in_cookie(request)
        kind = CookieUserSession if in_cookie else UserSession
        store = self._memory if self._conversation_store is None else self._conversation_store
        return kind(request, session, store, self._recent_params, self.app_binding.namespace, account)

    def check_template_variables(self, overrides: ParamOverrides, prefix: str = "params.") -> None:
        """Raise InvalidValue for a variable of the chat template that may change the system prompt, if it is fixed.

        Templates may write the effort into the system prompt, so only its known values are accepted.
        """
        if self.allow_system_prompt or self.engine.tokenizer is None:
            return
        for name, value in (overrides.chat_template_kwargs or {}).items():
            if name not in THINKING_VARIABLES:
                problem = "must be absent"
            elif value is not None and value not in (True, False, *EFFORT_LEVELS):
                problem = f"must be true, false, {alternatives(tuple(EFFORT_LEVELS))}"
            else:
                continue
            raise InvalidValue(
                f"{prefix}chat_template_kwargs.{name}: {problem}; this server sets the system prompt itself."
            )

    def user_params(self, user: UserSession) -> ParamOverrides:
        """Return the parameters that ``user`` has set; none if this server does not, or no longer, allow them."""
        if not user.params:
            return ParamOverrides()
        try:
            params = ParamOverrides.model_validate_json(json.dumps(user.params))
            self.override(params)
            self.check_template_variables(params)
        except (InvalidValue, ValidationError):
            return ParamOverrides()
        return params
