"""Sessions and conversations in Redis, for several processes and hosts: the extra ``aiochatstream[redis]``.

Both classes take a client of redis-py, which is the app's to make and to close. Redis 6.2 or newer, or Valkey.
"""

from aiochatstream.sessions.redis.conversations import RedisConversationStore
from aiochatstream.sessions.redis.storage import RedisStorage

__all__ = ["RedisConversationStore", "RedisStorage"]
