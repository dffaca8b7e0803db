"""Models and servers that ``aiochatstream serve`` answers with, from its options."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

from aiochatstream import terminal
from aiochatstream.cli import device_options
from aiochatstream.cli.concurrency import default_slots
from aiochatstream.console import model_options, prompt_options
from aiochatstream.engines import AsyncEngine, Engine, RecordingEngine, ReplayEngine, ScriptedEngine
from aiochatstream.progress import LoadTime
from aiochatstream.texts import Texts
from aiochatstream.web.auth.secret_files import read_secrets

URL = re.compile(r"(https?|dns\+http|list\+https?)://|unix:")
"""Beginning of the URL of a server."""

ADDRESS = re.compile(r"[\w.-]+:\d+(/|$)|[\w+]+://")
"""Beginning of an address without a scheme, or with an unknown one: it is no model."""


SLOTS_EACH = 64
"""Concurrent answers of each server behind this one."""


class ModelSource(NamedTuple):
    """A model to serve.

    name: name for clients of /v1; None for the model's own name.
    model: HuggingFace id, folder or .gguf file; None for the small model, and for ``urls``.
    urls: servers that have the model; empty for a model in this process.
    """

    name: str | None = None
    model: str | None = None
    urls: tuple[str, ...] = ()


def sources_of(options: argparse.Namespace) -> list[ModelSource]:
    """Return the models to serve, at least one. Raise ValueError for options that contradict each other."""
    if options.models is None:
        return [_source(None, options.model)]
    if options.model:
        raise ValueError("MODEL: must be absent with --model NAME=WHAT.")
    sources = []
    for text in options.models:
        name, equals, what = text.partition("=")
        if not (name and equals and what):
            raise ValueError(f"--model: must be NAME=WHAT, not {text!r}.")
        sources.append(_source(name, what.split(",") if URL.match(what) else [what]))
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ValueError(f"--model: must have a different name for each model, not {', '.join(map(str, names))}.")
    return sources


def _source(name: str | None, targets: list[str]) -> ModelSource:
    if targets and all(map(URL.match, targets)):
        return ModelSource(name, urls=tuple(targets))
    for target in targets:
        if ADDRESS.match(target) and not URL.match(target):
            raise ValueError(
                "MODEL|URL: URLs must begin with http://, https://, dns+http://, list+http://, list+https:// or unix:, "
                f"not {target!r}."
            )
    if len(targets) > 1:
        raise ValueError(f"MODEL: must be one model, or URLs of servers, not {' '.join(targets)}.")
    return ModelSource(name, targets[0] if targets else None)


def engine_of(options: argparse.Namespace, source: ModelSource, url: str, texts: Texts) -> Engine | AsyncEngine:
    """Return the engine of a model or of its substitute. Raise ValueError and OSError.

    :param url: URL of this server, for messages.
    """
    if options.replay is not None:
        return ReplayEngine(options.replay)
    if source.urls:
        return upstream_engine(source.urls, options.slots_each, options.upstream_key_file, options.upstream_model)
    if options.devices is not None:
        return device_options.engine_of(options, source.model, url, texts)
    mock = options.mock
    engine = _transformers_engine(options, source.model, url, texts) if mock is None else ScriptedEngine(mock)
    return engine if options.record is None else RecordingEngine(engine, options.record)


def slots_of(options: argparse.Namespace, source: ModelSource) -> int | None:
    """Return the number of concurrent answers of a model or of servers; None for the engine's own number.

    Without ``--concurrency``, a model in this process is assumed to be batched. Raise ValueError if its device does not
    exist.
    """
    if options.devices is not None:
        return None
    if options.concurrency is not None:
        return int(options.concurrency)
    if source.urls or options.mock is not None or options.replay is not None:
        return None
    from aiochatstream.engines.transformers import loading  # a slow import

    return default_slots(loading.choose_device(vars(options).get("device", "auto")).type)


def upstream_engine(
    urls: tuple[str, ...], slots: int | None, key_file: Path | None, model: str | None = None
) -> AsyncEngine:
    """Return the engine of servers. Raise ValueError and OSError.

    :param slots: maximum number of concurrent answers of each; None for :data:`SLOTS_EACH`.
    :param key_file: file with their API key; None for none.
    :param model: name of the model there; None for their only one.
    """
    from aiochatstream.engines.upstream import Upstream, UpstreamEngine  # only for servers

    key = None
    if key_file is not None:
        keys = read_secrets(key_file).split()
        if len(keys) != 1:
            raise ValueError(f"--upstream-key-file: {key_file} must contain one key.")
        key = keys[0]
    upstreams = [Upstream(url, api_key=key) for url in urls]
    return UpstreamEngine(upstreams, slots=SLOTS_EACH if slots is None else slots, model=model)


def _transformers_engine(options: argparse.Namespace, name: str | None, url: str, texts: Texts) -> Engine:
    if not options.child:
        terminal.write(texts.loading.format(model=name or texts.small_model, url=url), sys.stdout)
    with terminal.default_ctrl_c():
        from aiochatstream.engines.transformers import (  # a slow import
            TransformersEngine,
            loading,
        )

    load_options = model_options.load_options(vars(options))
    model, tokenizer = loading.loaders(name, load_options)
    model = LoadTime(name=texts.loading_name.format(name=name or texts.small_model), fn=model).__call__
    tokenizer = prompt_options.with_chat_template(tokenizer, options.chat_template)
    return TransformersEngine(model, tokenizer, compile=options.compile, quantize=load_options.quantize)
