"""Where a conversation lives."""

from aiochatstream.sessions.agent import AgentSession
from aiochatstream.sessions.cookie import CookieUserSession
from aiochatstream.sessions.memory import MemoryConversationStore, MemoryStorage
from aiochatstream.sessions.store import ConversationStore
from aiochatstream.sessions.user import SESSIONS_HINT, UserSession, granted_role, keeps_data_in_cookie, load_session

__all__ = [
    "SESSIONS_HINT",
    "AgentSession",
    "ConversationStore",
    "CookieUserSession",
    "MemoryConversationStore",
    "MemoryStorage",
    "UserSession",
    "granted_role",
    "keeps_data_in_cookie",
    "load_session",
]
