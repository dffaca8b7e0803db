"""What the model is told."""

from aiochatstream.prompts.base import AbstractChatPrompt, Content
from aiochatstream.prompts.chat_template import ChatPrompt
from aiochatstream.prompts.context import fit

__all__ = ["AbstractChatPrompt", "ChatPrompt", "Content", "fit"]
