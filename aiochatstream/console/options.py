"""The command line of ``aiochatstream chat``."""

from __future__ import annotations

import argparse

DESCRIPTION = """\
Talk to a model in this process, or to a running aiochatstream server. In a terminal, /help shows the commands. Where
stdin or stdout is no terminal, it is a filter: each line of stdin is a message of one conversation, the answers go to
stdout, each ended by a new line, and the exit code is 1 if one of them failed.
"""

DEFAULTS = {"device": "auto", "dtype": "auto", "max_new_tokens": 256, "temperature": 0.2, "top_p": 0.7, "system": ""}
"""Of a model in this process."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put the options on ``parser``. Those that were not given are None."""
    parser.description = DESCRIPTION
    add = parser.add_argument
    add(
        "target",
        nargs="?",
        metavar="MODEL|URL",
        help="HuggingFace id, folder or .gguf file, or a server's http://... or https://...; none: the small model",
    )
    add("--max-new-tokens", type=int, metavar="N", help="tokens that an answer may have (256; else the server's)")
    add("--temperature", type=float, metavar="T", help="0 (greedy) to 2 (0.2; else the server's)")
    add("--top-p", type=float, metavar="P", help="0 (greedy) to 1, off (0.7; else the server's)")
    add = parser.add_argument_group("a model in this process").add_argument
    add("--device", metavar="auto|cpu|cuda|cuda:N|mps", help="where the model runs (auto)")
    add("--dtype", choices=["auto", "float32", "float16", "bfloat16"], help="what it computes in (auto)")
    add("--compile", action="store_true", default=None, help="compile the model: quicker answers, a slower start")
    add("--context-len", type=int, metavar="N", help="tokens of prompt and answer (the model's limit, at most 2048)")
    add("--system", metavar="TEXT", help="what the model is told before the conversation")
