"""Options of ``aiochatstream serve``."""

from __future__ import annotations

import argparse
from pathlib import Path

from aiochatstream.cli import engines, session_options
from aiochatstream.cli.concurrency import CPU_SLOTS, CUDA_SLOTS
from aiochatstream.cli.engines import SLOTS_EACH, ModelSource
from aiochatstream.console import model_options, prompt_options

API_KEYS = "AIOCHATSTREAM_API_KEYS"
"""Environment variable of API keys, separated by whitespace."""

QUEUE, QUEUE_OF_UPSTREAMS = 5, 500
"""Length of the queue of a model, and of servers, which answer many more requests at a time."""

SERVER_ONLY = ("slots_each", "upstream_key_file", "upstream_model")
"""Options that only servers behind this one use. None if absent."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to ``parser``."""
    add = parser.add_argument
    add(
        "model",
        nargs="*",
        metavar="MODEL|URL",
        help="HuggingFace id, folder or .gguf file (without it, the small model), or URLs of servers with OpenAI's API "
        "that generate the answers: http(s)://..., dns+http://NAME:PORT, list+http://...",
    )
    add(
        "--model",
        action="append",
        dest="models",
        metavar="NAME=WHAT",
        help="model that clients of /v1 choose by this name: WHAT is a MODEL, or URLs separated by commas; repeatable, "
        "and the page uses the first one",
    )
    add("--host", default="127.0.0.1", help="address to listen on")
    add(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="host name that clients may use, for example chat.example.com behind a proxy; repeatable",
    )
    add("--port", type=_port, default=8080, help="port to listen on; 0 selects a free port")
    add("--child", action="store_true", help=argparse.SUPPRESS)  # a server of --devices, which ends with its parent
    add("--unix", type=Path, metavar="PATH", help="listen on a Unix socket at this path instead")
    model_options.add_arguments(parser)
    add(
        "--devices",
        metavar="LIST",
        help="devices separated by commas, for example cuda:0,cuda:1: a process with a copy of the model on each",
    )
    add(
        "--compile",
        action="store_true",
        help="compile the model (Linux, g++): faster answers; the first start takes a minute longer",
    )
    add(
        "--mock",
        choices=["round", "echo", "long"],
        help="answer without a model: sentences in turn, echoes or long texts",
    )
    add("--record", type=Path, metavar="FOLDER", help="record every answer in this folder")
    add("--replay", type=Path, metavar="FOLDER", help="replay the answers recorded in this folder, without a model")
    prompt_options.add_arguments(parser)
    add(
        "--concurrency",
        type=int,
        metavar="N",
        help=f"answers generated concurrently: by a model, or by each of --devices ({CUDA_SLOTS} with CUDA, otherwise "
        f"{CPU_SLOTS}), by all servers (no limit)",
    )
    add("--slots-each", type=int, metavar="N", help=f"answers that each server generates concurrently ({SLOTS_EACH})")
    add("--upstream-model", metavar="NAME", help="model of servers that have several")
    add("--upstream-key-file", type=Path, metavar="FILE", help="API key of the servers")
    add(
        "--queue",
        type=int,
        metavar="N",
        help=f"waiting requests beyond these ({QUEUE}; {QUEUE_OF_UPSTREAMS} for servers); further ones get 503",
    )
    add("--share-queue", action="store_true", help="share slots and queue with other processes, by --session redis")
    add("--max-new-tokens", type=int, metavar="N", help="maximum tokens of an answer (those that the context leaves)")
    add("--max-thinking-tokens", type=int, metavar="N", help="maximum tokens of a thought (as many as of an answer)")
    add("--context-len", type=int, metavar="N", help="tokens of prompt and answer (as many as model and memory allow)")
    add(
        "--strict-max-tokens",
        action="store_true",
        help="refuse longer answers to clients of /v1 instead of shortening them",
    )
    add("--temperature", type=float, metavar="T", help="0 (greedy) to 2 (the model's own, or 0.2)")
    add("--top-p", type=float, metavar="P", help="0 (greedy) to 1, off (the model's own, or 0.7)")
    add("--api-key-file", type=Path, metavar="FILE", help=f"API keys of /v1, one per line (or in {API_KEYS})")
    session_options.add_arguments(parser)


def check(options: argparse.Namespace) -> list[ModelSource]:
    """Return the models to serve. Raise ValueError if options contradict each other, before a model is loaded."""
    sources = engines.sources_of(options)
    substitute = "--mock" if options.mock is not None else "--replay" if options.replay is not None else None
    model_only = [
        *((_name(name), name in options) for name in model_options.NAMES),
        ("--devices", options.devices is not None),
        ("--compile", options.compile),
        *((_name(name), vars(options)[name] is not None) for name in prompt_options.NAMES),
    ]
    for option, is_set in (
        ("--replay", substitute == "--mock" and options.replay is not None),
        ("--record", substitute == "--replay" and options.record is not None),
        ("MODEL", bool(options.model)),
        ("--model", options.models is not None),
        *model_only,
    ):
        if substitute is not None and is_set:
            raise ValueError(f"{option} cannot be used with {substitute}, which answers without a model.")
    upstreams = [source for source in sources if source.urls]
    if len(upstreams) == len(sources):
        for option, is_set in (*model_only, ("--record", options.record is not None)):
            if is_set:
                raise ValueError(f"{option} cannot be used with URLs: those servers have the model.")
    elif not upstreams:
        for name in SERVER_ONLY:
            if vars(options)[name] is not None:
                raise ValueError(f"{_name(name)} needs the URL of a server.")
    if options.devices is not None and options.record is not None:
        raise ValueError("--record cannot be used with --devices.")
    if options.devices is not None and ("device" in options or "device_map" in options):
        raise ValueError("--devices cannot be used with --device and --device-map.")
    if options.share_queue and options.session != "redis":
        raise ValueError("--share-queue needs --session redis.")
    if options.share_queue and len(upstreams) < len(sources):
        raise ValueError("--share-queue needs URLs: processes with a model of their own share no slots.")
    prompt_options.check_combination(options.prompt, options.chat_template)
    context_len, answer = options.context_len, options.max_new_tokens
    if None not in (context_len, answer) and context_len <= answer:
        raise ValueError(f"context_len: must be above max_new_tokens ({answer}), not {context_len}.")
    return sources


def _name(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _port(text: str) -> int:
    port = int(text) if text.isdecimal() else -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("must be from 0 to 65535")
    return port
