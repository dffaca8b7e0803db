"""aiochatstream: a streaming chat with a HuggingFace model inside an aiohttp application."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiochatstream.chat_stream import ChatStream
    from aiochatstream.constraint import Constraint
    from aiochatstream.conversations.conversation import Conversation, Turn
    from aiochatstream.conversations.memory_store import MemoryConversationStore
    from aiochatstream.conversations.redis_store import RedisConversationStore as RedisConversationStore
    from aiochatstream.conversations.store import ConversationStore
    from aiochatstream.engines import (
        AsyncEngine,
        Delta,
        Engine,
        FunctionEngine,
        Prompt,
        RecordingEngine,
        ReplayEngine,
        ScriptedEngine,
        TokenLogprob,
        TokenSampler,
        ToolCall,
    )
    from aiochatstream.engines.transformers import TransformersEngine as TransformersEngine
    from aiochatstream.errors import ChatStreamError
    from aiochatstream.models import Models
    from aiochatstream.params import GenerationParams, Limits, ParamLimits
    from aiochatstream.progress import LoadTime
    from aiochatstream.prompts import AbstractChatPrompt, ChatPrompt, Content
    from aiochatstream.sessions import CookieStorage, MemoryStorage
    from aiochatstream.sessions.redis_storage import RedisStorage as RedisStorage
    from aiochatstream.web.auth.pass_phrases import hash_phrase
    from aiochatstream.web.feedback import Feedback, FeedbackFile

__version__ = "0.2.0"

_MODULES = {
    "AbstractChatPrompt": "prompts",
    "AsyncEngine": "engines",
    "ChatPrompt": "prompts",
    "ChatStream": "chat_stream",
    "ChatStreamError": "errors",
    "Constraint": "constraint",
    "Content": "prompts",
    "Conversation": "conversations.conversation",
    "ConversationStore": "conversations.store",
    "CookieStorage": "sessions",
    "Delta": "engines",
    "Engine": "engines",
    "Feedback": "web.feedback",
    "FeedbackFile": "web.feedback",
    "FunctionEngine": "engines",
    "GenerationParams": "params",
    "Limits": "params",
    "LoadTime": "progress",
    "MemoryConversationStore": "conversations.memory_store",
    "MemoryStorage": "sessions",
    "Models": "models",
    "ParamLimits": "params",
    "Prompt": "engines",
    "RecordingEngine": "engines",
    "RedisConversationStore": "conversations.redis_store",
    "RedisStorage": "sessions.redis_storage",
    "ReplayEngine": "engines",
    "ScriptedEngine": "engines",
    "TokenLogprob": "engines",
    "TokenSampler": "engines",
    "ToolCall": "engines",
    "TransformersEngine": "engines.transformers",
    "Turn": "conversations.conversation",
    "hash_phrase": "web.auth.pass_phrases",
}
"""Module of each public name, imported at the first use: a program needs only the packages of the names it uses.

``__all__`` omits the names that need an extra, so that ``import *`` needs none.
"""

__all__ = [
    "AbstractChatPrompt",
    "AsyncEngine",
    "ChatPrompt",
    "ChatStream",
    "ChatStreamError",
    "Constraint",
    "Content",
    "Conversation",
    "ConversationStore",
    "CookieStorage",
    "Delta",
    "Engine",
    "Feedback",
    "FeedbackFile",
    "FunctionEngine",
    "GenerationParams",
    "Limits",
    "LoadTime",
    "MemoryConversationStore",
    "MemoryStorage",
    "Models",
    "ParamLimits",
    "Prompt",
    "RecordingEngine",
    "ReplayEngine",
    "ScriptedEngine",
    "TokenLogprob",
    "TokenSampler",
    "ToolCall",
    "Turn",
    "__version__",
    "hash_phrase",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
