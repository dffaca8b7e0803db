"""Options of ``aiochatstream chat``."""

from __future__ import annotations

import argparse
from typing import Any

from aiochatstream.console import model_options, prompt_options
from aiochatstream.params import GenerationParams, Temperature, TopP

DESCRIPTION = """\
Talk to a model in this process or to a running aiochatstream server. In a terminal, /help lists the commands. If stdin
or stdout is not a terminal, the command is a filter: each line of stdin is a message of one conversation, each answer
is written to stdout and ends with a newline, and the exit code is 1 if an answer fails.
"""

DEFAULTS = {"system": ""}
"""Defaults for a model in this process."""

SAMPLING_OPTIONS = ("max_new_tokens", "temperature", "top_p")


class ModelParams(GenerationParams):
    """Parameters of ``serve`` and ``chat``, with defaults for models that have no settings of their own."""

    temperature: Temperature = 0.2
    top_p: TopP = 0.7

    @classmethod
    def of(cls, options: dict[str, Any]) -> ModelParams:
        """Return the parameters that the options specify. Raise ValueError."""
        names = (*SAMPLING_OPTIONS, "max_thinking_tokens", "chat_template_kwargs")
        return cls(**{name: options[name] for name in names if options.get(name) is not None})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to ``parser``. Absent ones are None."""
    parser.description = DESCRIPTION
    add = parser.add_argument
    add(
        "target",
        nargs="?",
        metavar="MODEL|URL",
        help="HuggingFace id, folder or .gguf file, or the http(s):// URL of a server; without it, the small model",
    )
    add(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="maximum tokens of an answer (those that the context leaves; with a URL: the server's)",
    )
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="0 (greedy) to 2 (the model's own, or 0.2; with a URL: the server's)",
    )
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="0 (greedy) to 1, off (the model's own, or 0.7; with a URL: the server's)",
    )
    group = parser.add_argument_group("a model in this process")
    model_options.add_arguments(group)
    prompt_options.add_arguments(group)
    add = group.add_argument
    add("--compile", action="store_true", default=None, help="compile the model: faster answers, slower start")
    add("--context-len", type=int, metavar="N", help="tokens of prompt and answer (as many as model and memory allow)")
    add("--system", metavar="TEXT", help="system prompt")
