"""Building the prompt."""

from aiochatstream.prompts.base import AbstractChatPrompt, Content
from aiochatstream.prompts.chat_template import ChatPrompt, encode_messages, render_messages
from aiochatstream.prompts.completions_only import CompletionsOnly
from aiochatstream.prompts.context import fit
from aiochatstream.prompts.inputs import ChatInput, TextInput
from aiochatstream.prompts.template_arguments import TemplateArguments

__all__ = [
    "AbstractChatPrompt",
    "ChatInput",
    "ChatPrompt",
    "CompletionsOnly",
    "Content",
    "TemplateArguments",
    "TextInput",
    "encode_messages",
    "fit",
    "render_messages",
]
