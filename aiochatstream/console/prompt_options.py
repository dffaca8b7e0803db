"""Options of the commands for the prompt of a model in this process."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiochatstream.prompts import AbstractChatPrompt, ChatPrompt, CompletionsOnly
from aiochatstream.prompts.presets import FORMATS, find_format

NAMES = ("prompt", "chat_template", "chat_template_kwargs")
"""Names of the options in the parsed namespace."""

REMEDY = f"--prompt NAME ({', '.join(FORMATS)}, or the name of a model) or --chat-template FILE"
"""Options for a model without a chat template."""


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options to a parser or a group. Absent ones are None."""
    add = parser.add_argument
    add(
        "--prompt",
        metavar="NAME",
        help=f"format of prompts instead of the model's chat template: {', '.join(FORMATS)}, or the name of a model",
    )
    add("--chat-template", type=Path, metavar="FILE", help="Jinja file that replaces the model's chat template")
    add(
        "--chat-template-kwargs",
        type=_json,
        metavar="JSON",
        help="""variables of the chat template, for example '{"enable_thinking": false}'""",
    )


def prompt_class_of(name: str | None, *, completes: bool = False) -> Callable[[Any], type[AbstractChatPrompt]]:
    """Return the argument ``chat_prompt_clazz`` of ChatStream for ``--prompt NAME``.

    :param name: name of a format or of a model; None for the model's own format.
    :param completes: accept a model without a format, which then only completes texts.

    Raise ValueError for an unknown name. The returned function raises ValueError for a model without a format.
    """
    if name is not None:
        prompt_class = find_format(name)
        if prompt_class is None:
            raise ValueError(
                f"--prompt: must be one of {', '.join(FORMATS)}, or the name of a model with a preset, not {name!r}."
            )
        return lambda _: prompt_class

    def choose(tokenizer: Any) -> type[AbstractChatPrompt]:
        try:
            return ChatPrompt.for_model(tokenizer)
        except ValueError:
            if completes:
                return CompletionsOnly
            raise ValueError(f"This model has no chat template; choose a format with {REMEDY}.") from None

    return choose


def with_chat_template(load_tokenizer: Callable[[], Any], file: Path | None) -> Callable[[], Any]:
    """Return a function that loads the tokenizer, with the chat template in ``file`` if it is not None.

    Raise OSError if the file cannot be read, and ValueError if it is not UTF-8.
    """
    if file is None:
        return load_tokenizer
    try:
        template = file.read_text("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"--chat-template: {file} must be UTF-8 text.") from None

    def load() -> Any:
        tokenizer = load_tokenizer()
        tokenizer.chat_template = template
        return tokenizer

    return load


def check_combination(prompt: str | None, chat_template: Path | None) -> None:
    """Raise ValueError if both options select the format."""
    if prompt is not None and chat_template is not None:
        raise ValueError("--prompt: must not be combined with --chat-template.")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise argparse.ArgumentTypeError(f"must be JSON, not {text!r}") from None
