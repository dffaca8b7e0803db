"""Likes and dislikes, appended to feedback.jsonl: python examples/feedback_server.py."""

import aiohttp_session
from aiohttp import web
from simple_server import model, tokenizer

from aiochatstream import ChatStream, FeedbackFile, MemoryStorage

append_to_file = FeedbackFile("feedback.jsonl")


async def on_feedback(request, feedback):
    await append_to_file(request, feedback)
    print("liked" if feedback.is_like else "not liked", feedback.target_message_id, flush=True)


async def create_app():
    chat_stream = ChatStream(model=model, tokenizer=tokenizer, on_feedback=on_feedback)
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.add_endpoints(app, include=["chat_stream", "set_feedback"])
    return app


if __name__ == "__main__":
    web.run_app(create_app(), host="127.0.0.1", port=8080)
