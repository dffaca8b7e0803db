"""Servers to compare, specified on the command line as presets, URLs or commands."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from peers import PRESETS, Peer, installed_versions, python_path

from aiochatstream.bench.plan import Plan, ProtocolName
from aiochatstream.bench.protocols import PROTOCOLS

SPEC = re.compile(r"(?P<name>[\w.+-]+)(:(?P<protocol>\w+))?=(?P<source>.+)", re.DOTALL)


@dataclass(frozen=True)
class ServerSpec:
    """A server to measure.

    command: command line that starts the server; empty if it runs at ``url``.
    source: URL or command for reports.
    placeholders: values of placeholders in ``command``, besides those that every command has.
    env: complete environment of the command.
    ignore_eos, extra_body: fields of the requests; see Peer.
    missing: reason why the server cannot be started; empty if it can.
    custom: the user specified URL or command, so that an error is wrong use.
    """

    name: str
    title: str
    protocol: ProtocolName
    command: str = ""
    url: str = ""
    source: str = ""
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    placeholders: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    ignore_eos: bool = False
    names_model: bool = False
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    missing: str = ""
    custom: bool = True

    @property
    def model_placeholder(self) -> str:
        """Placeholder of the model in ``command``: ``{model}``, ``{gguf}`` or empty."""
        return next((name for name in ("{model}", "{gguf}") if name in self.command), "")


def parse_spec(text: str, peers: Path) -> ServerSpec:
    """Parse a preset, ``NAME[:PROTOCOL]=URL`` or ``NAME[:PROTOCOL]=COMMAND with {port}``. Raise ValueError."""
    if text in PRESETS:
        return _preset(text, PRESETS[text], peers)
    match = SPEC.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} must be a preset ({', '.join(PRESETS)}), NAME=URL or NAME=COMMAND")
    name, protocol, source = match["name"], match["protocol"] or "sse", match["source"]
    if protocol not in PROTOCOLS:
        raise ValueError(f"{text!r}: the protocol must be one of {', '.join(PROTOCOLS)}, not {protocol}")
    ignore_eos = protocol in ("sse", "text")
    spec = ServerSpec(name, name, cast(ProtocolName, protocol), source=source, ignore_eos=ignore_eos)
    if re.match(r"\w+://", source):
        try:
            Plan(url=source, extra_body={})
        except ValueError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return replace(spec, url=source)
    if "{port}" not in source:
        raise ValueError(f"{text!r}: a command must contain {{port}}, the port to listen on")
    try:
        shlex.split(source)
    except ValueError as error:
        raise ValueError(f"{text!r}: {str(error).lower()}") from None
    return replace(spec, command=source)


def _preset(name: str, peer: Peer, peers: Path) -> ServerSpec:
    env = dict(os.environ)
    if peer.install or peer.shares:
        for variable in ("PYTHONPATH", "VIRTUAL_ENV"):
            env.pop(variable, None)
    versions, missing = installed_versions(name, peers)
    return ServerSpec(
        name,
        peer.title,
        peer.protocol,
        command=peer.command,
        source=" ".join([*(f"{key}={value}" for key, value in peer.env.items()), peer.command]),
        env={**env, "HF_HUB_OFFLINE": "1", **peer.env},
        placeholders={"python": str(python_path(name, peers)), "bench": str(Path(__file__).resolve().parent)},
        versions=versions,
        ignore_eos=peer.ignore_eos,
        names_model=peer.names_model,
        extra_body=peer.extra_body,
        note=peer.note,
        missing=missing,
        custom=False,
    )
