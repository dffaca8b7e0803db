"""``python bench/idle_conversations.py N`` prints the memory of N idle conversations and sessions, in bytes, as JSON.

A process of its own for bench/overhead.py.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import uuid

import psutil
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp_session import Session

from aiochatstream import Conversation, MemoryConversationStore, MemoryStorage, Turn
from aiochatstream.conversations.random_ids import random_id
from aiochatstream.sessions.user_session import SESSION_KEY

TURNS = 4
MESSAGE_CHARS, ANSWER_CHARS = 100, 400


async def measure(count: int) -> dict[str, int]:
    """Store conversations and sessions as a server with the default storage does, and return their size in bytes."""
    unlimited = 1 << 40
    store = MemoryConversationStore(max_conversations=count, max_bytes=unlimited)
    storage = MemoryStorage(max_sessions=count, max_bytes=unlimited)
    rng = random.Random(1)  # noqa: S311
    request = make_mocked_request("GET", "/")
    before, text = rss(), 0
    for _ in range(count):
        conversation = Conversation()
        for _ in range(TURNS):
            message_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
            message, answer = (f"{rng.getrandbits(4 * size):0{size}x}" for size in (MESSAGE_CHARS, ANSWER_CHARS))
            text += len(message) + len(answer)
            conversation = conversation.begin(message_id).with_turn(Turn(message, answer, message_id))
        user_id = random_id()
        await store.save(user_id, "main", conversation, expected_number=0)
        session = Session(None, data=None, new=True)
        session[SESSION_KEY] = {"id": user_id}
        await storage.save_session(request, web.Response(), session)
    if len(store) != count or len(storage) != count:
        raise RuntimeError("The stores evicted some conversations or sessions.")
    return {"conversations": count, "text": text, "memory": rss() - before}


def rss() -> int:
    gc.collect()
    size: int = psutil.Process().memory_info().rss
    return size


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(int(sys.argv[1])))))
