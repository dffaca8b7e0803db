"""Where a conversation lives."""

from aiochatstream.sessions.agent import AgentSession
from aiochatstream.sessions.cookie import CookieUserSession
from aiochatstream.sessions.memory import MemoryConversationStore, MemoryStorage, recent_params
from aiochatstream.sessions.sealed import CookieStorage
from aiochatstream.sessions.store import ConversationStore
from aiochatstream.sessions.user import (
    SESSIONS_HINT,
    Kept,
    User,
    UserSession,
    granted_role,
    keeps_data_in_cookie,
    load_session,
)

__all__ = [
    "SESSIONS_HINT",
    "AgentSession",
    "ConversationStore",
    "CookieStorage",
    "CookieUserSession",
    "Kept",
    "MemoryConversationStore",
    "MemoryStorage",
    "User",
    "UserSession",
    "granted_role",
    "keeps_data_in_cookie",
    "load_session",
    "recent_params",
]
