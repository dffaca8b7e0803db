"""Tests of LangChain and LiteLLM with a real server: `make test-clients`. The exit status is 1 if a test fails.

The environment .venv-clients is separate, because these libraries have many dependencies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it downloads prices

import litellm
from langchain_openai import ChatOpenAI

ROOT = Path(__file__).parents[2]
PORT = 8917
BASE = f"http://127.0.0.1:{PORT}/v1"
START_SECONDS = 300
QUESTION = "What is the capital of France?"


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=8)
    size: int = Field(ge=0, le=99)


@contextmanager
def server() -> Iterator[str]:
    """Serve the small model; yield its name."""
    command = [
        str(ROOT / ".venv/bin/python"),
        "-m",
        "aiochatstream",
        "serve",
        "--port",
        str(PORT),
        "--temperature",
        "0",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("The server did not start.")
            with suppress(OSError), urllib.request.urlopen(f"{BASE}/models") as response:
                yield json.load(response)["data"][0]["id"]
                return
            time.sleep(0.5)
    finally:
        process.terminate()
        process.wait()


def client_tests(model: str) -> dict[str, Callable[[], object]]:
    """Return the tests by name. A test that fails raises an exception."""
    settings: dict[str, Any] = {"base_url": BASE, "api_key": "none", "model": model, "max_retries": 0}
    chat, longer = (ChatOpenAI(**settings, max_tokens=tokens) for tokens in (12, 48))
    request: dict[str, Any] = {"model": f"openai/{model}", "api_base": BASE, "api_key": "none", "max_tokens": 12}
    request["messages"] = [{"role": "user", "content": QUESTION}]
    parameters: dict[str, Any] = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}}
    parameters |= {"required": ["city"], "additionalProperties": False}
    weather = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}

    def langchain_text() -> None:
        answer = chat.invoke(QUESTION)
        assert "Paris" in answer.content, answer
        assert answer.usage_metadata["output_tokens"] > 0

    def langchain_stream() -> None:
        pieces = [piece.content for piece in chat.stream(QUESTION)]
        assert len(pieces) > 3
        assert "Paris" in "".join(pieces)

    def langchain_stop() -> None:
        assert chat.invoke(QUESTION, stop=[" of"]).content == "The capital"

    def langchain_schema() -> None:
        city = longer.with_structured_output(City, method="json_schema").invoke("A city, please.")
        assert isinstance(city, City), city

    def langchain_tool() -> None:
        bound = longer.bind_tools([weather], tool_choice="get_weather")
        (call,) = bound.invoke("Weather in Paris?").tool_calls
        assert call["name"] == "get_weather"

    def langchain_logprobs() -> None:
        answer = chat.bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
        assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2

    def litellm_text() -> None:
        answer = litellm.completion(**request, seed=1)
        assert "Paris" in answer.choices[0].message.content
        assert answer.usage.prompt_tokens > 0

    def litellm_stream() -> None:
        chunks = litellm.completion(**request, stream=True)
        assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    def litellm_many() -> None:
        assert len(litellm.completion(**request, n=2).choices) == 2

    def litellm_schema() -> None:
        answer = litellm.completion(**{**request, "max_tokens": 48}, response_format=City)
        City.model_validate_json(answer.choices[0].message.content)

    def litellm_error() -> None:
        try:
            litellm.completion(**{**request, "max_tokens": 0})
        except litellm.BadRequestError as error:
            assert "max_tokens" in str(error)
        else:
            raise AssertionError("The request was not refused.")

    return {name: function for name, function in locals().items() if name.startswith(("langchain_", "litellm_"))}


def main() -> int:
    """Run the tests; return the exit status."""
    failed = 0
    with server() as model:
        for name, function in client_tests(model).items():
            try:
                function()
            except Exception:  # noqa: BLE001 - any exception is a failure
                failed += 1
                print(f"FAILED  {name}")
                traceback.print_exc()
            else:
                print(f"ok      {name}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
