"""Traits of a chat template, found by rendering a probe."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

PROBES = {role: f"probe{role}1357" for role in ("system", "user", "assistant")}
"""Texts by role; trim, upper and the like do not matter where case does not."""

TOOL_NAME = "probetool1357"
TOOL = {
    "type": "function",
    "function": {
        "name": TOOL_NAME,
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"probe": {"type": "string", "description": "A probe."}}},
    },
}


def template_errors() -> tuple[type[Exception], ...]:
    """Return the errors that templates raise: jinja2's, if it is installed."""
    try:
        from jinja2 import TemplateError
    except ModuleNotFoundError:
        return ()
    return (TemplateError,)


def refusals() -> tuple[type[Exception], ...]:
    """Return the errors of rendering messages that a template does not accept."""
    return (*template_errors(), ValueError, TypeError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True)
class TemplateTraits:
    """The parts of a conversation that a chat template renders.

    text: whether what users say is rendered at all.
    parts: whether content must be a list of parts; a string would be left out silently.
    system: whether system messages are rendered.
    tools: whether tools are.
    """

    text: bool
    parts: bool
    system: bool
    tools: bool


_known: weakref.WeakKeyDictionary[Any, dict[str, TemplateTraits]] = weakref.WeakKeyDictionary()


def traits_of(tokenizer: Any, *, tools: bool = False) -> TemplateTraits:
    """Return the traits of the tokenizer's chat template, of the one for tools where it has several."""
    template = tokenizer.get_chat_template(tools=[TOOL] if tools else None)
    known = _known.setdefault(tokenizer, {})
    if template not in known:
        known[template] = _probe(tokenizer, template)
    return known[template]


def in_parts(text: str) -> list[dict[str, str]]:
    """Return ``text`` as a list of one part."""
    return [{"type": "text", "text": text}]


def _probe(tokenizer: Any, template: str) -> TemplateTraits:
    def rendered(*roles: str, parts: bool, **more: Any) -> str | None:
        """Return the rendered probe, None where the template refuses it."""
        messages = [{"role": role, "content": in_parts(PROBES[role]) if parts else PROBES[role]} for role in roles]
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, tokenize=False, **more
            )
        except refusals():
            return None
        return str(text).lower()

    def has(text: str | None, *roles: str) -> bool:
        written_as_list = text is not None and str(in_parts("")[0])[:-4] in text  # it knows no parts
        return text is not None and not written_as_list and all(PROBES[role] in text for role in roles)

    def renders(*roles: str, parts: bool) -> bool:
        return has(rendered(*roles, parts=parts), *roles)

    text = renders("user", parts=False)
    parts = renders("user", parts=True) and not (text and renders("user", "assistant", "user", parts=False))
    text = text or parts
    system = not text or renders("system", "user", parts=parts)
    told = rendered("user", parts=parts, tools=[TOOL]) if "tools" in template else None
    if told is None and "tools" in template and system:
        told = rendered("system", "user", parts=parts, tools=[TOOL])
    return TemplateTraits(text, parts, system, tools=told is not None and TOOL_NAME in told)
