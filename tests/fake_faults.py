"""The settings of a :mod:`tests.fake_upstream`, and its failures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def error(message: str, kind: str, code: object, param: object = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


LONG = "This model's maximum context length is 100 tokens. However, your request has 200 input tokens."
REFUSALS: dict[str, tuple[int, dict[str, Any], dict[str, str]]] = {
    "too_long_vllm": (400, error(f"{LONG} (parameter=input_tokens, value=200)", "BadRequestError", 400), {}),
    "too_long_sglang": (
        400,
        {"object": "error", "message": "The input (200 tokens) is longer than the model's context length (100 tokens).",
         "type": "BadRequestError", "param": None, "code": 400},
        {},
    ),
    "too_long_openai": (400, error(LONG, "invalid_request_error", "context_length_exceeded", "messages"), {}),
    "too_long_llamacpp": (
        400,
        {"error": {"code": 400, "message": "the request exceeds the available context size, try increasing it",
                   "type": "exceed_context_size_error", "n_prompt_tokens": 200, "n_ctx": 100}},
        {},
    ),
    "bad_request": (400, error("temperature: must be 0 to 2, not 3.", "BadRequestError", 400), {}),
    "unauthorized": (401, error("Incorrect API key: sk-secret.", "invalid_request_error", "invalid_api_key"), {}),
    "no_model": (404, error("The model `other` does not exist.", "NotFoundError", 404), {}),
    "rate_limit": (429, error("Rate limit reached.", "rate_limit_error", "rate_limit_exceeded"), {"Retry-After": "1"}),
    "busy": (503, error("The queue is full.", "server_error", "queue_full"), {}),
    "busy_retry_after": (503, error("The queue is full.", "server_error", "queue_full"), {"Retry-After": "1"}),
    "draining": (503, error("The server is shutting down.", "server_error", "draining"), {}),
    "internal": (500, error("CUDA error at /secret/path.", "InternalServerError", 500), {}),
    "bad_gateway": (502, {}, {}),
}  # fmt: skip
"""Status, JSON and headers of each response that refuses a request."""


@dataclass
class Fault:
    """A failure of one request to a completion endpoint.

    :param kind: a key of :data:`REFUSALS`, or "reset" (TCP reset), "silence" (sends nothing more; the connection stays
        open), "end" (ends the body regularly), "broken_json" (an event that is not JSON, then the rest), "error_event"
        (an ``error`` object, then the end), "finish" (ends with ``finish_reason`` and ``[DONE]``).
    :param stage: moment of it: "request" (no byte is sent), "headers", "role" (after the role chunk), "words" (after
        ``words`` words of this response), "finish" (after the finish chunk, before usage and ``[DONE]``).
    :param finish_reason: of "finish": for example "abort", or None for none.
    :param times: number of requests that it hits.
    :param match: hits only requests whose JSON contains this text.
    """

    kind: str
    stage: str = "words"
    words: int = 0
    finish_reason: str | None = "abort"
    times: int = 1
    match: str = ""


@dataclass
class Settings:
    """The behaviour of a server; may change between requests.

    :param words: number of words of a whole answer.
    :param max_model_len: maximum tokens of prompt and answer; longer ones are refused in the words of ``owned_by``.
    :param first_token_s: seconds before the first word. token_s: seconds for each further word.
    :param slots: maximum answers at a time. Further ones get 503, or wait if ``queue``.
    :param heartbeat_s: seconds between SSE comments while nothing else is sent.
    :param reasoning: number of reasoning words before an answer. reasoning_field: their field in a delta.
    :param tool_calls: ``{"name", "arguments"}`` to call if the request has tools.
    :param split_bytes: maximum bytes of a TCP write, which cuts events and characters.
    """

    owned_by: str = "vllm"
    model: str = "fake"
    max_model_len: int = 100_000
    words: int = 20
    first_token_s: float = 0.0
    token_s: float = 0.0
    slots: int | None = None
    queue: bool = False
    heartbeat_s: float | None = None
    reasoning: int = 0
    reasoning_field: str = "reasoning_content"
    tool_calls: list[dict[str, str]] = field(default_factory=list)
    split_bytes: int | None = None


class Refused(Exception):
    """A request that gets the response :data:`REFUSALS` [args[0]], or a 400 with this text."""


class Broken(Exception):
    """A response that a fault ends."""
