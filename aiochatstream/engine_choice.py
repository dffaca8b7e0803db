"""Engine and prompt class from the constructor's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

from aiochatstream.engines import (
    AsyncEngine,
    AsyncFunctionEngine,
    AsyncTextFunction,
    Engine,
    FunctionEngine,
    TextFunction,
)
from aiochatstream.prompts import AbstractChatPrompt

PromptClassOf = Callable[[Any], type[AbstractChatPrompt]]
"""Function that returns the prompt class for a tokenizer."""


def choose_prompt_class(chat_prompt_clazz: type[AbstractChatPrompt] | PromptClassOf) -> PromptClassOf:
    """Return a function that returns the prompt class, and raises TypeError if it is invalid for a tokenizer.

    Raise TypeError if ``chat_prompt_clazz`` is neither a prompt class nor a function.
    """

    def check(prompt_class: Any, subject: str) -> type[AbstractChatPrompt]:
        if inspect.isclass(prompt_class) and issubclass(prompt_class, AbstractChatPrompt):
            return prompt_class
        raise TypeError(
            f"chat_prompt_clazz: {subject} a subclass of AbstractChatPrompt (the class itself, not an instance), "
            f"not {prompt_class!r}."
        )

    if callable(chat_prompt_clazz) and not inspect.isclass(chat_prompt_clazz):
        return lambda tokenizer: check(chat_prompt_clazz(tokenizer), "the function must return")
    prompt_class = check(chat_prompt_clazz, "must be")
    return lambda _: prompt_class


def choose_engine(
    engine: Engine | AsyncEngine | TextFunction | AsyncTextFunction | None, model: Any, tokenizer: Any, device: Any
) -> Engine | AsyncEngine:
    """Return ``engine``, or an engine for the model. Raise TypeError for both, for neither, and for other objects."""
    if engine is None:
        return transformers_engine(model, tokenizer, device)
    if model is not None or tokenizer is not None:
        raise TypeError("engine: must be absent if model and tokenizer are specified.")
    if isinstance(engine, Engine | AsyncEngine):
        return engine
    if inspect.isasyncgenfunction(engine):
        return AsyncFunctionEngine(engine)
    if not callable(engine) or inspect.iscoroutinefunction(engine):
        raise TypeError(
            f"engine: must be an Engine or a generator function, plain or async, of (messages, params), not {engine!r}."
        )
    return FunctionEngine(cast(TextFunction, engine))


def transformers_engine(model: Any, tokenizer: Any, device: Any, **options: Any) -> Engine:
    """Return a TransformersEngine. Raise TypeError if the model or the tokenizer is missing."""
    for name, value in (("model", model), ("tokenizer", tokenizer)):
        if value is None:
            raise TypeError(f"{name}: must be a loaded HuggingFace {name} or a function that loads it.")
    from aiochatstream.engines.transformers import TransformersEngine  # here, so that importing the package is light

    return TransformersEngine(model, tokenizer, device, **options)
