"""Tools (functions that a model may ask to be called) for models whose chat template does not know them: told in words.

The words are those of Hermes 2 (https://github.com/NousResearch/Hermes-Function-Calling), which many models have seen.
"""

from __future__ import annotations

import json
from typing import Any

from aiochatstream.errors import InvalidValue
from aiochatstream.prompts.template_traits import traits_of

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


def knows_tools(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template tells the model of tools."""
    return bool(getattr(tokenizer, "chat_template", None)) and traits_of(tokenizer, tools=True).tools


def parse_arguments(text: str) -> Any:
    """Return the arguments of a call from their JSON.

    Raises ValueError or RecursionError for what is not JSON, and :class:`~aiochatstream.errors.InvalidValue` for JSON
    that no text can hold: half a surrogate pair, a number beyond all bounds.
    """
    arguments = json.loads(text)
    try:
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise InvalidValue(
            "messages: the arguments of tool_calls must be JSON without half surrogate pairs, NaN and Infinity."
        ) from None
    return arguments


def in_words(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with tools, calls and their results as text, in the roles system, user and assistant only."""
    told: list[dict[str, Any]] = []
    for message in messages:
        role, text = message["role"], message.get("content") or ""
        if role == "tool":
            text = f"<tool_response>\n{text}\n</tool_response>"
        if role in ("tool", "user") and told and told[-1].get("from_tools"):
            told[-1]["content"] += f"\n{text}"
        elif role == "tool":
            told.append({"role": "user", "content": text, "from_tools": True})
        elif message.get("tool_calls"):
            calls = (_call(call["function"]) for call in message["tool_calls"])
            told.append({"role": role, "content": "\n".join([text, *calls] if text else calls)})
        else:
            told.append(dict(message))
    for message in told:
        message.pop("from_tools", None)
    if not tools:
        return told
    lines = (json.dumps(tool, ensure_ascii=False) for tool in tools)
    introduction = INTRODUCTION.format(tools="\n".join(lines))
    if told[0]["role"] in ("system", "developer"):
        system = {"role": "system", "content": f"{told[0].get('content') or ''}\n\n{introduction}".lstrip()}
        return [system, *told[1:]]
    return [{"role": "system", "content": introduction}, *told]


def _call(function: dict[str, Any]) -> str:
    try:
        told = json.dumps({**function, "arguments": parse_arguments(function["arguments"])}, ensure_ascii=False)
    except (ValueError, RecursionError):  # arguments as the model wrote them
        told = json.dumps(function, ensure_ascii=False)
    return f"{BEGIN_CALL}\n{told}\n{END_CALL}"
