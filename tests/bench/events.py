"""Events of answers. Servers in processes of their own import nothing else, so that they start quickly."""

from __future__ import annotations

import json


def event(name: str, **data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def delta(text: str) -> str:
    return event("delta", text=text)


def done(tokens: int, queue_s: float = 0.0) -> str:
    usage = {"prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": tokens}
    return event("done", finish_reason="stop", usage=usage, timing={"queue_s": queue_s, "ttft_s": 0, "total_s": 0})
