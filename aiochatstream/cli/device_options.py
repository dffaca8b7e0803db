"""Option ``--devices`` of ``aiochatstream serve``: a server process for each device."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from aiochatstream import terminal
from aiochatstream.cli.concurrency import default_slots
from aiochatstream.console import model_options, prompt_options
from aiochatstream.engines import AsyncEngine
from aiochatstream.texts import Texts

FORWARDED = ("context_len", "max_new_tokens", "max_thinking_tokens", "temperature", "top_p")
"""Options of the servers with the values of this one, besides those of the model and its prompt."""


def engine_of(options: argparse.Namespace, model: str | None, url: str, texts: Texts) -> AsyncEngine:
    """Return the engine of the devices. Raise ValueError if one is invalid.

    :param url: URL of this server, for a message.
    """
    from aiochatstream.engines.upstream.child_servers import ChildServers  # only for several devices
    from aiochatstream.engines.upstream.device_engine import DeviceEngine

    def slots_of(device: str) -> int:
        return default_slots(device) if options.concurrency is None else int(options.concurrency)

    children = ChildServers(
        lambda device, socket: command_of(options, model, slots_of(device), device, socket),
        options.devices.split(","),
        slots_of=slots_of,
    )
    terminal.write(texts.loading.format(model=model or texts.small_model, url=url), sys.stdout)
    return DeviceEngine(children)


def command_of(options: argparse.Namespace, model: str | None, slots: int, device: str, socket: Path) -> list[str]:
    """Return the command of the server of a device.

    It has no queue: requests wait in this server's.
    """
    values: dict[str, object] = {name: vars(options)[name] for name in model_options.NAMES if name in options}
    values |= {name: vars(options)[name] for name in (*prompt_options.NAMES, *FORWARDED)}
    values |= {"device": device, "unix": socket, "concurrency": slots, "queue": 0, "locale": options.locale}
    command = [sys.executable, "-m", "aiochatstream", "serve", "--child", *([] if model is None else [model])]
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            command.append(option)
        elif value is not None and value is not False:
            command += [option, json.dumps(value) if isinstance(value, dict) else str(value)]
    return [*command, *(["--compile"] if options.compile else [])]
