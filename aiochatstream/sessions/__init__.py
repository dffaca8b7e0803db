"""The user behind a request, identified by aiohttp-session."""

from aiochatstream.sessions.agent import AgentSession, is_agent
from aiochatstream.sessions.cookie_session import CookieUserSession
from aiochatstream.sessions.encrypted_cookie import CookieStorage
from aiochatstream.sessions.memory_storage import MemoryStorage, recent_params
from aiochatstream.sessions.user_session import (
    SESSIONS_HINT,
    UserSession,
    granted_role,
    keeps_data_in_cookie,
    load_session,
    reload_session,
)

__all__ = [
    "SESSIONS_HINT",
    "AgentSession",
    "CookieStorage",
    "CookieUserSession",
    "MemoryStorage",
    "UserSession",
    "granted_role",
    "is_agent",
    "keeps_data_in_cookie",
    "load_session",
    "recent_params",
    "reload_session",
]
