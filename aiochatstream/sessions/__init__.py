"""Where a conversation lives."""

from aiochatstream.sessions.cookie import CookieUserSession
from aiochatstream.sessions.memory import MemoryConversationStore, MemoryStorage, recent_params
from aiochatstream.sessions.store import ConversationStore
from aiochatstream.sessions.user import SESSIONS_HINT, User, UserSession, keeps_data_in_cookie, load_session

__all__ = [
    "SESSIONS_HINT",
    "ConversationStore",
    "CookieUserSession",
    "MemoryConversationStore",
    "MemoryStorage",
    "User",
    "UserSession",
    "keeps_data_in_cookie",
    "load_session",
    "recent_params",
]
