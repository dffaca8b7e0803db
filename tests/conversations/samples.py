"""Conversations for the tests of stores."""

from __future__ import annotations

from aiochatstream import Conversation, Turn

ONE = Conversation(
    (Turn("日本の首都は？", "東京です。🗼", "id 1", "interrupted", "首都の話。"),), number=1, turn_id="id 1"
)
"""A conversation of one turn."""

TWO = ONE.begin("id 2").with_turn(Turn("And of France?", "Paris.", "id 2"))
"""The same conversation after another turn."""
