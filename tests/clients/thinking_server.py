"""A server with a model that thinks and calls tools: `python -m tests.clients.thinking_server MODEL PORT`.

It runs in the environment of the project, unlike the clients.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Generator

from aiohttp import web

from aiochatstream import ChatStream, Delta, Engine, GenerationParams, Prompt, ToolCall
from tests.model_families import FAMILIES, FamilyScript, chat_stream_of

THOUGHT = "Let me see… 🤔\n\nパリ？"


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


def tiny_model(name: str) -> ChatStream:
    """Return a server with a tiny model of the family ``name``."""
    family = FAMILIES[name]
    script = FamilyScript(family)
    script.answers = {
        "What is the capital of France?": family.answer("It is Paris. 🗼", THOUGHT),
        "What is the weather in Paris?": family.answer("", THOUGHT, [("get_weather", {"city": "Paris"})]),
    }
    return chat_stream_of(family, script)


MODELS: dict[str, Callable[[], ChatStream]] = {
    "scripted-thoughts": lambda: ChatStream(engine=ScriptedThoughts()),
    **{
        name.lower().replace(" ", "-"): functools.partial(tiny_model, name)
        for name, family in FAMILIES.items()
        if family.thought and family.write_calls
    },
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
