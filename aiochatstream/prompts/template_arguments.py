"""Arguments of a chat template: its switch for thoughts, and other variables that requests may set."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiochatstream.errors import InvalidValue
from aiochatstream.params import THINKING_LEVELS, GenerationParams, ThinkingLevel
from aiochatstream.prompts.template_traits import as_parts, refusals, traits_of
from aiochatstream.validation import alternatives

FLAGS = ("enable_thinking", "thinking")
"""Variables that switch thoughts on (true) and off (false)."""

EFFORT = "reasoning_effort"
"""Variable with the amount of thoughts."""

TOOL_VARIABLES = ("custom_tools", "builtin_tools")
"""Variables that replace or extend the tools of a request (Llama 3.1)."""

ON_LEVELS: tuple[ThinkingLevel, ...] = ("low", "medium", "high")

EFFORTS: Mapping[ThinkingLevel, str] = {"off": "none", "low": "low", "medium": "medium", "high": "high"}
"""Value of :data:`EFFORT` for each level."""

PROBE = "probeeffort1357"
"""Value that no template knows."""


@dataclass(frozen=True)
class TemplateArguments:
    """Arguments that a chat template accepts. Without any, it has neither a switch for thoughts nor variables.

    names: variables that requests may set.
    flag: variable that switches thoughts on and off; None if there is none.
    efforts: levels that the template distinguishes by :data:`EFFORT`.
    """

    names: tuple[str, ...] = ()
    flag: str | None = None
    efforts: frozenset[ThinkingLevel] = field(default_factory=frozenset)

    @classmethod
    def of(cls, tokenizer: Any) -> TemplateArguments:
        """Return the arguments of the tokenizer's chat template, of all its templates together if it has several.

        Slow at the first call for a tokenizer. Raise ValueError for a template with a syntax error.
        """
        all_traits = traits_of(tokenizer), traits_of(tokenizer, tools=True)
        reserved = {"messages", *TOOL_VARIABLES, *inspect.signature(tokenizer.apply_chat_template).parameters}
        variables = {name for traits in all_traits for name in traits.variables}
        names = {name for name in variables - reserved if not name.endswith("_token")}
        flag = next((name for name in FLAGS if name in names), None)
        efforts = _efforts(tokenizer, parts=all_traits[0].parts) if EFFORT in names else frozenset()
        return cls(tuple(sorted(names)), flag, efforts)

    @property
    def levels(self) -> tuple[ThinkingLevel, ...]:
        """Levels of ``thinking`` that the template supports, ascending after ``auto``; empty without a switch.

        A template that knows only on and off supports all levels, which are equal except ``off``.
        """
        if self.flag is None and not self.efforts:
            return ()
        on_levels = [level for level in ON_LEVELS if level in self.efforts or not self.efforts]
        off: list[ThinkingLevel] = ["off"] if self.flag is not None or "off" in self.efforts else []
        return ("auto", *off, *on_levels)

    def distinct_levels(self, allowed: Collection[ThinkingLevel] = THINKING_LEVELS) -> tuple[ThinkingLevel, ...]:
        """Return the allowed :attr:`levels` that differ: of equal ones only the highest."""
        levels = tuple(level for level in self.levels if level in allowed)
        if self.efforts:
            return levels
        on_levels = [level for level in levels if level in ON_LEVELS]
        return (*(level for level in levels if level not in ON_LEVELS), *on_levels[-1:])

    def check(self, params: GenerationParams, prefix: str) -> None:
        """Raise :class:`~aiochatstream.errors.InvalidValue` for a level or a variable that the template does not know.

        :param prefix: prefix of the parameter's name in errors.
        """
        if params.thinking != "auto" and params.thinking not in self.levels:
            levels = alternatives(self.levels or ("auto",))
            reason = "" if self.levels else ", whose prompts have no switch for thoughts"
            raise InvalidValue(f"{prefix}thinking: must be {levels} with this model{reason}.")
        unknown = next((name for name in params.chat_template_kwargs if name not in self.names), None)
        if unknown is not None:
            raise InvalidValue(
                f"{prefix}chat_template_kwargs.{unknown}: unknown variable; the model's chat template accepts "
                f"{', '.join(self.names) or 'no variables'}."
            )

    def values(self, params: GenerationParams) -> dict[str, Any]:
        """Return the values of the template's variables for ``params``."""
        values: dict[str, Any] = {}
        if params.thinking != "auto" and self.flag is not None:
            values[self.flag] = params.thinking != "off"
        if params.thinking in self.efforts:
            values[EFFORT] = EFFORTS[params.thinking]
        return values | params.chat_template_kwargs


def nearest_level(level: ThinkingLevel, levels: Sequence[ThinkingLevel]) -> ThinkingLevel | None:
    """Return the lowest of ``levels`` that is not below ``level``, else the highest; None for ``auto`` only."""
    order: tuple[ThinkingLevel, ...] = ("off", *ON_LEVELS)
    above = [candidate for candidate in order[order.index(level) :] if candidate in levels]
    below = [candidate for candidate in reversed(order[: order.index(level)]) if candidate in levels]
    return next(iter(above + below), None)


def _efforts(tokenizer: Any, *, parts: bool) -> frozenset[ThinkingLevel]:
    """Return the levels that the template distinguishes.

    Templates may refuse unknown values, ignore or print them. ``none`` therefore switches thoughts off only if it is
    rendered in another way than a value that no template knows.
    """

    def render(effort: str) -> str | None:
        content = as_parts("a") if parts else "a"
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=False,
                **{EFFORT: effort},
            )
        except refusals():
            return None
        return str(text).lower()

    rendered = {level: render(effort) for level, effort in EFFORTS.items()}
    unknown = render(PROBE)
    if unknown is not None and rendered["off"] == unknown.replace(PROBE, EFFORTS["off"]):
        rendered["off"] = None
    return frozenset(level for level, text in rendered.items() if text is not None)
