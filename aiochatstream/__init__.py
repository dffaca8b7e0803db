"""aiochatstream: a streaming chat with a HuggingFace model inside an aiohttp application."""

from aiochatstream.chat_stream import ChatStream
from aiochatstream.constraint import Constraint
from aiochatstream.conversations.conversation import Conversation, Turn
from aiochatstream.engines import (
    Delta,
    Engine,
    FunctionEngine,
    Prompt,
    RecordingEngine,
    ReplayEngine,
    ScriptedEngine,
    TokenLogprob,
    TokenSampler,
)
from aiochatstream.errors import ChatStreamError
from aiochatstream.params import GenerationParams
from aiochatstream.progress import LoadTime
from aiochatstream.prompts import (
    AbstractChatPrompt,
    ChatPrompt,
    ChatPromptCyberAgentOpenCalm,
    ChatPromptDatabricksDolly,
    ChatPromptLineCorpJpLargeLmInstSft,
    ChatPromptMatsuoLabJpGptNeoxInstSft,
    ChatPromptMetaLlamaLlama2Chat,
    ChatPromptMosaicmlMptChat,
    ChatPromptOpenlmrOpenLlama,
    ChatPromptRinnaJpGptNeoxInstSft,
    ChatPromptStabilityAiJpGptNeoxInstSft,
    ChatPromptStockmarkGptNeoxJp,
    ChatPromptTogetherRedPajamaINCITEChat,
    Content,
)
from aiochatstream.sessions import ConversationStore, CookieStorage, MemoryConversationStore, MemoryStorage
from aiochatstream.web.auth.pass_phrases import hash_phrase
from aiochatstream.web.endpoints.feedback import Feedback, FeedbackFile

__version__ = "0.1.0"

__all__ = [
    "AbstractChatPrompt",
    "ChatPrompt",
    "ChatPromptCyberAgentOpenCalm",
    "ChatPromptDatabricksDolly",
    "ChatPromptLineCorpJpLargeLmInstSft",
    "ChatPromptMatsuoLabJpGptNeoxInstSft",
    "ChatPromptMetaLlamaLlama2Chat",
    "ChatPromptMosaicmlMptChat",
    "ChatPromptOpenlmrOpenLlama",
    "ChatPromptRinnaJpGptNeoxInstSft",
    "ChatPromptStabilityAiJpGptNeoxInstSft",
    "ChatPromptStockmarkGptNeoxJp",
    "ChatPromptTogetherRedPajamaINCITEChat",
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
    "LoadTime",
    "MemoryConversationStore",
    "MemoryStorage",
    "Prompt",
    "RecordingEngine",
    "ReplayEngine",
    "ScriptedEngine",
    "TokenLogprob",
    "TokenSampler",
    "Turn",
    "__version__",
    "hash_phrase",
]
