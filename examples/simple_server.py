"""A chat server for many users of one model: python examples/simple_server.py, or gunicorn (see the README)."""

import aiohttp_session
from aiohttp import web
from transformers import AutoModelForCausalLM, AutoTokenizer

from aiochatstream import ChatStream, GenerationParams, MemoryStorage
from aiochatstream.engines.transformers import choose_device, choose_dtype, small_model

device = choose_device()  # a GPU, if there is one


def model():  # small_model() returns a local folder; a HuggingFace id also works
    return AutoModelForCausalLM.from_pretrained(small_model(), dtype=choose_dtype(device))


def tokenizer():
    return AutoTokenizer.from_pretrained(small_model())


async def create_app():
    params = GenerationParams(temperature=0.2, top_p=0.7)
    chat_stream = ChatStream(
        num_of_concurrent_executions=2, max_queue_size=5, model=model, tokenizer=tokenizer, device=device, params=params
    )

    async def stream(request):
        return await chat_stream.handle_chat_stream_request(request)

    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    app.router.add_post("/chat_stream", stream)
    chat_stream.setup(app)  # loads the model in the background
    return app


if __name__ == "__main__":
    web.run_app(create_app(), host="127.0.0.1", port=8080)
