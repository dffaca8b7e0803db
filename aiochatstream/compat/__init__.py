"""chatstream 0.3.0's interface: its constructor, methods and prompt classes.

A migrating application changes one import::

    from aiochatstream.compat import ChatStream, ChatPromptTogetherRedPajamaINCITEChat
"""

from aiochatstream.compat.chat_stream import ChatStream
from aiochatstream.compat.presets import (
    ChatPrompt,
    ChatPromptCyberAgentOpenCalm,
    ChatPromptDatabricksDolly,
    ChatPromptLineCorpJpLargeLmInstSft,
    ChatPromptMatsuoLabJpGptNeoxInstSft,
    ChatPromptMetaLlamaLlama2Chat,
    ChatPromptMosaicmlMptChat,
    ChatPromptOpenlmrOpenLlama,
    ChatPromptRinnaJapaneseGPTNeoxInst,
    ChatPromptRinnaJpGptNeoxInstSft,
    ChatPromptStabilityAiJpGptNeoxInstSft,
    ChatPromptStockmarkGptNeoxJp,
    ChatPromptTogetherRedPajamaINCITEChat,
)
from aiochatstream.compat.prompts import AbstractChatPrompt, ChatContent, PromptTTL, RoleType
from aiochatstream.compat.request_handlers import AbstractRequestHandler, SimpleSessionRequestHandler
from aiochatstream.compat.token_samplers import TokenSamplerHft, TokenSamplerIsok
from aiochatstream.progress import LoadTime

__all__ = [
    "AbstractChatPrompt",
    "AbstractRequestHandler",
    "ChatContent",
    "ChatPrompt",
    "ChatPromptCyberAgentOpenCalm",
    "ChatPromptDatabricksDolly",
    "ChatPromptLineCorpJpLargeLmInstSft",
    "ChatPromptMatsuoLabJpGptNeoxInstSft",
    "ChatPromptMetaLlamaLlama2Chat",
    "ChatPromptMosaicmlMptChat",
    "ChatPromptOpenlmrOpenLlama",
    "ChatPromptRinnaJapaneseGPTNeoxInst",
    "ChatPromptRinnaJpGptNeoxInstSft",
    "ChatPromptStabilityAiJpGptNeoxInstSft",
    "ChatPromptStockmarkGptNeoxJp",
    "ChatPromptTogetherRedPajamaINCITEChat",
    "ChatStream",
    "LoadTime",
    "PromptTTL",
    "RoleType",
    "SimpleSessionRequestHandler",
    "TokenSamplerHft",
    "TokenSamplerIsok",
]
