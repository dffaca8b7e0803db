"""Tools (functions that a model may call) as text, for models whose chat template does not render them.

The format follows Hermes 2 (https://github.com/NousResearch/Hermes-Function-Calling), which many models were trained
on.
"""

from __future__ import annotations

import json
from typing import Any

from aiochatstream.errors import InvalidValue
from aiochatstream.prompts.template_traits import THOUGHT_FIELDS, traits_of

BEGIN_CALL, END_CALL = "<tool_call>", "</tool_call>"

INTRODUCTION = """\
You may call functions to help with the user's request. They are, a line of JSON each:
<tools>
{tools}
</tools>
To call one, answer with its name and its arguments as JSON, within these tags:
<tool_call>
{{"name": <function-name>, "arguments": <arguments-object>}}
</tool_call>"""


def supports_tools(tokenizer: Any) -> bool:
    """Return True if the tokenizer's chat template renders tools."""
    return bool(getattr(tokenizer, "chat_template", None)) and traits_of(tokenizer, tools=True).tools


def parse_arguments(text: str) -> Any:
    """Return the arguments of a call, parsed from JSON.

    Raise ValueError or RecursionError for invalid JSON, and :class:`~aiochatstream.errors.InvalidValue` for JSON that
    cannot be encoded again: unpaired surrogates, NaN and infinite numbers.
    """
    arguments = json.loads(text)
    try:
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise InvalidValue(
            "messages: the arguments of tool_calls must be JSON without unpaired surrogates, NaN and Infinity."
        ) from None
    return arguments


def render_tools_as_text(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return ``messages`` with tools, calls and results as text, in the roles system, user and assistant only."""
    rendered: list[dict[str, Any]] = []
    for message in messages:
        role, text = message["role"], message.get("content") or ""
        if role == "tool":
            text = f"<tool_response>\n{text}\n</tool_response>"
        if role in ("tool", "user") and rendered and rendered[-1].get("from_tools"):
            rendered[-1]["content"] += f"\n{text}"
        elif role == "tool":
            rendered.append({"role": "user", "content": text, "from_tools": True})
        elif message.get("tool_calls"):
            calls = (_render_call(call["function"]) for call in message["tool_calls"])
            thoughts = {field: message[field] for field in THOUGHT_FIELDS if field in message}
            rendered.append({"role": role, "content": "\n".join([text, *calls] if text else calls), **thoughts})
        else:
            rendered.append(dict(message))
    for message in rendered:
        message.pop("from_tools", None)
    if not tools:
        return rendered
    lines = (json.dumps(tool, ensure_ascii=False) for tool in tools)
    introduction = INTRODUCTION.format(tools="\n".join(lines))
    if rendered[0]["role"] in ("system", "developer"):
        system = {"role": "system", "content": f"{rendered[0].get('content') or ''}\n\n{introduction}".lstrip()}
        return [system, *rendered[1:]]
    return [{"role": "system", "content": introduction}, *rendered]


def _render_call(function: dict[str, Any]) -> str:
    try:
        text = json.dumps({**function, "arguments": parse_arguments(function["arguments"])}, ensure_ascii=False)
    except (ValueError, RecursionError):  # keep the arguments as the model wrote them
        text = json.dumps(function, ensure_ascii=False)
    return f"{BEGIN_CALL}\n{text}\n{END_CALL}"
