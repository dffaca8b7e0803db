"""Where a conversation lives."""

from aiochatstream.conversations.store import ConversationStore, Holder, StopRequest
from aiochatstream.sessions.agent import AgentSession
from aiochatstream.sessions.cookie_session import CookieUserSession
from aiochatstream.sessions.encrypted_cookie import CookieStorage
from aiochatstream.sessions.memory_storage import MemoryConversationStore, MemoryStorage, random_id, recent_params
from aiochatstream.sessions.user_session import (
    SESSIONS_HINT,
    Kept,
    User,
    UserSession,
    granted_role,
    keeps_data_in_cookie,
    load_session,
    reload_session,
)

__all__ = [
    "SESSIONS_HINT",
    "AgentSession",
    "ConversationStore",
    "CookieStorage",
    "CookieUserSession",
    "Holder",
    "Kept",
    "MemoryConversationStore",
    "MemoryStorage",
    "StopRequest",
    "User",
    "UserSession",
    "granted_role",
    "keeps_data_in_cookie",
    "load_session",
    "random_id",
    "recent_params",
    "reload_session",
]
