"""A handler that checks the request before ChatStream: python examples/intercept_server.py."""

import aiohttp_session
from aiohttp import web
from simple_server import model, tokenizer

from aiochatstream import ChatStream, GenerationParams, MemoryStorage


async def create_app():
    chat_stream = ChatStream(model=model, tokenizer=tokenizer, params=GenerationParams(max_new_tokens=64))

    async def stream(request):
        body = await request.read()
        if b"password" in body:
            return web.json_response({"error": "refused", "detail": "Do not send passwords."}, status=422)
        return await chat_stream.handle_chat_stream_request(request, request_body=body)

    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    app.router.add_post("/chat_stream", stream)
    chat_stream.setup(app)
    return app


if __name__ == "__main__":
    web.run_app(create_app(), host="127.0.0.1", port=8080)
