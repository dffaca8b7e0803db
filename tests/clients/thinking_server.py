"""A server with a model that thinks and calls tools: `thinking_server.py MODEL PORT`.

It runs in the environment of the project, unlike the clients.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator

from aiohttp import web

from aiochatstream import ChatStream, Delta, Engine, GenerationParams, Prompt, ToolCall


class ScriptedThoughts(Engine):
    """A mock model that thinks, and then calls the first tool or, without tools, answers."""

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        for word in ("Let ", "me ", "see."):
            yield Delta(thinking=word, token_ids=(0,), thinking_tokens=1)
        if prompt.tools:
            name = prompt.tools[0]["function"]["name"]
            yield Delta(tool_calls=(ToolCall(name, '{"city": "Paris"}', f"<{name}>"),), token_ids=(0,))
        else:
            for word in ("It ", "is ", "Paris."):
                yield Delta(word, (0,))
        yield Delta(finish_reason="stop")


MODELS: dict[str, Callable[[], ChatStream]] = {
    "scripted-thoughts": lambda: ChatStream(engine=ScriptedThoughts()),
}
"""Functions that load the models, by name.

If the user asks for the weather in Paris and offers a tool ``get_weather``, a model thinks and calls it; without tools,
it thinks and answers with a sentence about Paris.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("port", type=int)
    args = parser.parse_args()
    app = web.Application()
    MODELS[args.model]().setup_openai(app, model_name=args.model)
    web.run_app(app, host="127.0.0.1", port=args.port, print=None)


if __name__ == "__main__":
    main()
