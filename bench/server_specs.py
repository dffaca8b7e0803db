"""Who is compared: presets, URLs and commands, as they are named on the command line."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from peers import PRESETS, Peer, python_of, usable

from aiochatstream.bench.plan import Plan, ProtocolName
from aiochatstream.bench.protocols import PROTOCOLS

NAMED = re.compile(r"(?P<name>[\w.+-]+)(:(?P<protocol>\w+))?=(?P<what>.+)", re.DOTALL)


@dataclass(frozen=True)
class Contestant:
    """A server to be measured.

    command: how it is started; empty: it runs at ``url``.
    env: its whole environment.
    missing: why it cannot be started; empty: it can.
    own: the user named it, so what is wrong with it is wrong use.
    """

    name: str
    title: str
    protocol: ProtocolName
    command: str = ""
    url: str = ""
    shown: str = ""
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    fill: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    ignore_eos: bool = False
    names_model: bool = False
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    missing: str = ""
    own: bool = True

    @property
    def needs(self) -> str:
        """What of a model its command names: ``{model}``, ``{gguf}`` or nothing."""
        return next((name for name in ("{model}", "{gguf}") if name in self.command), "")


def read(text: str, peers: Path) -> Contestant:
    """A preset's name, ``NAME[:PROTOCOL]=URL`` or ``NAME[:PROTOCOL]=COMMAND with {port}``. Raises ValueError."""
    if text in PRESETS:
        return _preset(text, PRESETS[text], peers)
    match = NAMED.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is neither a preset ({', '.join(PRESETS)}) nor NAME=URL or NAME=COMMAND")
    name, protocol, what = match["name"], match["protocol"] or "sse", match["what"]
    if protocol not in PROTOCOLS:
        raise ValueError(f"{text!r}: there is no protocol {protocol}, only {', '.join(PROTOCOLS)}")
    named = Contestant(name, name, cast(ProtocolName, protocol), shown=what, ignore_eos=protocol in ("sse", "text"))
    if re.match(r"\w+://", what):
        try:
            Plan(url=what, extra_body={})
        except ValueError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return replace(named, url=what)
    if "{port}" not in what:
        raise ValueError(f"{text!r}: a command needs {{port}} where the port belongs that it shall listen on")
    try:
        shlex.split(what)
    except ValueError as error:
        raise ValueError(f"{text!r}: {str(error).lower()}") from None
    return replace(named, command=what)


def _preset(name: str, peer: Peer, peers: Path) -> Contestant:
    env = dict(os.environ)
    if peer.install or peer.shares:
        for ours in ("PYTHONPATH", "VIRTUAL_ENV"):
            env.pop(ours, None)
    found, missing = usable(name, peers)
    return Contestant(
        name,
        peer.title,
        peer.protocol,
        command=peer.command,
        shown=" ".join([*(f"{key}={value}" for key, value in peer.env.items()), peer.command]),
        env={**env, "HF_HUB_OFFLINE": "1", **peer.env},
        fill={"python": str(python_of(name, peers)), "bench": str(Path(__file__).resolve().parent)},
        versions=found,
        ignore_eos=peer.ignore_eos,
        names_model=peer.names_model,
        extra_body=peer.extra_body,
        note=peer.note,
        missing=missing,
        own=False,
    )
