"""Traits of a chat template, detected by rendering probes and from its syntax."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

PROBES = {role: f"probe{role}1357" for role in ("system", "user", "assistant")}
"""Texts by role, that filters such as trim and upper leave recognisable."""

THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Fields of assistant messages from which templates read thoughts; the first that a template names is used."""

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
    """Capabilities of a chat template.

    text: user messages are rendered.
    parts: content must be a list of parts; strings are omitted silently.
    system: system messages are rendered.
    tools: tools are rendered.
    thought_field: field of assistant messages from which thoughts are read; None if there is none.
    variables: variables that the template reads from outside.
    """

    text: bool
    parts: bool
    system: bool
    tools: bool
    thought_field: str | None
    variables: frozenset[str]


_cache: weakref.WeakKeyDictionary[Any, dict[str, TemplateTraits]] = weakref.WeakKeyDictionary()


def traits_of(tokenizer: Any, *, tools: bool = False) -> TemplateTraits:
    """Return the traits of the tokenizer's chat template.

    :param tools: use the template for tools, if the tokenizer has several.

    Raise ValueError for a template with a syntax error.
    """
    template = tokenizer.get_chat_template(tools=[TOOL] if tools else None)
    cached = _cache.setdefault(tokenizer, {})
    if template not in cached:
        cached[template] = _probe(tokenizer, template)
    return cached[template]


def as_parts(text: str) -> list[dict[str, str]]:
    """Return ``text`` as content of one part."""
    return [{"type": "text", "text": text}]


def _probe(tokenizer: Any, template: str) -> TemplateTraits:
    syntax = _parse(template)

    def render(*roles: str, parts: bool, **options: Any) -> str | None:
        """Return the rendered probe; None if the template refuses it."""
        messages = [{"role": role, "content": as_parts(PROBES[role]) if parts else PROBES[role]} for role in roles]
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, tokenize=False, **options
            )
        except refusals():
            return None
        return str(text).lower()

    def renders(*roles: str, parts: bool) -> bool:
        text = render(*roles, parts=parts)
        if text is None or str(as_parts("")[0])[:-4] in text:  # parts are not supported, but printed as a list
            return False
        return all(PROBES[role] in text for role in roles)

    text = renders("user", parts=False)
    parts = renders("user", parts=True) and not (text and renders("user", "assistant", "user", parts=False))
    text = text or parts
    system = not text or renders("system", "user", parts=parts)
    with_tools = render("user", parts=parts, tools=[TOOL]) if "tools" in template else None
    if with_tools is None and "tools" in template and system:
        with_tools = render("system", "user", parts=parts, tools=[TOOL])
    return TemplateTraits(
        text,
        parts,
        system,
        tools=with_tools is not None and TOOL_NAME in with_tools,
        thought_field=_thought_field(syntax),
        variables=_variables(syntax),
    )


def _parse(template: str) -> Any:
    """Return the syntax tree of ``template``. Raise ValueError for a syntax error."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template  # the environment that renders it

    try:
        return _compile_jinja_template(template).environment.parse(template)
    except TemplateSyntaxError as error:
        raise ValueError(f"The model's chat template has a syntax error in line {error.lineno}: {error}.") from None


def _variables(syntax: Any) -> frozenset[str]:
    from jinja2.meta import find_undeclared_variables

    return frozenset(find_undeclared_variables(syntax))


def _thought_field(syntax: Any) -> str | None:
    from jinja2 import nodes

    names = {node.attr for node in syntax.find_all(nodes.Getattr)}
    names |= {node.value for node in syntax.find_all(nodes.Const) if isinstance(node.value, str)}
    return next((field for field in THOUGHT_FIELDS if field in names), None)
