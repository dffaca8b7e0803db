"""Building the prompt."""

from aiochatstream.prompts.base import AbstractChatPrompt, Content
from aiochatstream.prompts.chat_template import ChatPrompt, encode_messages, render_messages
from aiochatstream.prompts.context import fit
from aiochatstream.prompts.inputs import ChatInput, TextInput

__all__ = [
    "AbstractChatPrompt",
    "ChatInput",
    "ChatPrompt",
    "Content",
    "TextInput",
    "encode_messages",
    "fit",
    "render_messages",
]
