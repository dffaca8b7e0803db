"""Two models behind one OpenAI API, each with its own slots and queue: python examples/many_models.py.

    curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \
        -d '{"model": "parrot", "messages": [{"role": "user", "content": "Hello"}]}'
"""

from aiohttp import web

from aiochatstream import ChatStream, Models, ScriptedEngine


async def create_app():
    talker = ChatStream(engine=ScriptedEngine("round", time_per_token_sec=0.05), num_of_concurrent_executions=4)
    parrot = ChatStream(engine=ScriptedEngine("echo", time_per_token_sec=0.05), num_of_concurrent_executions=1)
    models = Models({"talker": talker, "parrot": parrot}, default="talker")
    app = web.Application()
    models.setup_openai(app)
    return app


if __name__ == "__main__":
    web.run_app(create_app(), host="127.0.0.1", port=8080)
