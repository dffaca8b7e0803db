"""Conversations in an application's own database, by its own logins: python examples/sqlite_conversations.py.

After login, users find their conversations again, from any browser and after a restart.
"""

import json

import aiohttp_session
import aiosqlite
from aiohttp import web
from simple_server import model, tokenizer

from aiochatstream import ChatStream, Conversation, ConversationStore, MemoryStorage
from aiochatstream.errors import ConversationChanged

TABLE = """CREATE TABLE IF NOT EXISTS conversations
    (user TEXT, name TEXT, number INTEGER, content TEXT, PRIMARY KEY (user, name))"""


class SqliteStore(ConversationStore):
    def __init__(self, path):
        self._path = path

    async def open(self, app):  # a cleanup context of the application
        async with aiosqlite.connect(self._path) as self._database:
            await self._database.execute(TABLE)
            yield

    async def load(self, user_id, name):
        query = "SELECT content FROM conversations WHERE user = ? AND name = ?"
        async with self._database.execute(query, (user_id, name)) as cursor:
            row = await cursor.fetchone()
        return None if row is None else Conversation.from_dict(json.loads(row[0]))

    async def save(self, user_id, name, conversation, *, expected_number):
        content = json.dumps(conversation.to_dict(), ensure_ascii=False)
        cursor = await self._database.execute(
            "INSERT INTO conversations VALUES (:user, :name, :number, :content) ON CONFLICT DO UPDATE "
            "SET number = :number, content = :content WHERE number = :expected",
            {
                "user": user_id,
                "name": name,
                "number": conversation.number,
                "content": content,
                "expected": expected_number,
            },
        )
        await self._database.commit()
        if cursor.rowcount == 0:
            raise ConversationChanged("The conversation has changed.")

    async def forget(self, user_id, name):
        query = "DELETE FROM conversations WHERE user = ? AND name = ?"
        cursor = await self._database.execute(query, (user_id, name))
        await self._database.commit()
        return cursor.rowcount > 0


async def log_in(request):
    session = await aiohttp_session.new_session(request)
    session["user"] = (await request.json())["user"]  # a real application checks a password here
    return web.json_response({"success": True})


async def current_user(request):
    user = (await aiohttp_session.get_session(request)).get("user")
    if user is None:
        raise web.HTTPUnauthorized
    return user


async def create_app(path="conversations.sqlite"):
    store = SqliteStore(path)
    chat_stream = ChatStream(model=model, tokenizer=tokenizer, conversation_store=store, identify_user=current_user)
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    app.router.add_post("/log_in", log_in)
    app.cleanup_ctx.append(store.open)
    chat_stream.add_endpoints(app)
    return app


if __name__ == "__main__":
    web.run_app(create_app(), host="127.0.0.1", port=8080)
