"""What a ChatStream is given to answer with: an engine or what to make one of, and a prompt class or what tells it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from aiochatstream.engines import Engine, FunctionEngine, TextFunction, TokenSampler
from aiochatstream.prompts import AbstractChatPrompt


def prompt_class_of(
    given: type[AbstractChatPrompt] | Callable[[Any], type[AbstractChatPrompt]], add_special_tokens: bool | None
) -> Callable[[Any], type[AbstractChatPrompt]]:
    """What tells the prompt class when the tokenizer is there. Raises TypeError or ValueError for what is none."""
    if add_special_tokens is not None and not isinstance(add_special_tokens, bool):
        raise ValueError(f"add_special_tokens: must be True, False or None, not {add_special_tokens!r}.")

    def checked(found: Any, what: str) -> type[AbstractChatPrompt]:
        if not (inspect.isclass(found) and issubclass(found, AbstractChatPrompt)):
            raise TypeError(
                f"chat_prompt_clazz: {what} a subclass of AbstractChatPrompt (the class itself, not an object of it), "
                f"not {found!r}."
            )
        if add_special_tokens is None:
            return found
        return type(found.__name__, (found,), {"add_special_tokens": add_special_tokens})

    if callable(given) and not inspect.isclass(given):
        return lambda tokenizer: checked(given(tokenizer), "the function must return")
    prompt_class = checked(given, "must be")
    return lambda _: prompt_class


def engine_of(
    engine: Engine | TextFunction | None,
    model: Any,
    tokenizer: Any,
    device: Any,
    token_sampler: TokenSampler | None,
) -> Engine:
    """The engine that is given, or one of the model. Raises TypeError where there is neither, or both."""
    if engine is not None:
        if token_sampler is not None:
            raise TypeError("token_sampler: goes with model and tokenizer; give it to the engine itself.")
        if model is not None or tokenizer is not None:
            raise TypeError("engine: takes the place of model and tokenizer; give one or the other.")
        if isinstance(engine, Engine):
            return engine
        if not callable(engine) or inspect.iscoroutinefunction(engine) or inspect.isasyncgenfunction(engine):
            raise TypeError(
                f"engine: must be an Engine or a plain generator function of (messages, params), not {engine!r}."
            )
        return FunctionEngine(engine)
    for name, value in (("model", model), ("tokenizer", tokenizer)):
        if value is None:
            raise TypeError(f"{name}: give a loaded HuggingFace {name}, or a function that loads it.")
    from aiochatstream.engines.transformers import TransformersEngine  # here, so that importing the package is light

    return TransformersEngine(model, tokenizer, device, token_sampler=token_sampler)
