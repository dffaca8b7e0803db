"""Choice of a server: rendezvous hashing with bounded load.

A key always belongs to the same server, whose cache then has the beginning of the prompt. If servers appear or vanish,
only their own keys move. A server with more than its share of the answers passes keys on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b

from aiochatstream.engines.upstream.server import UpstreamServer

LOAD_PERCENT = 125
"""Maximum number of answers of a server, in percent of its share of all running answers, by its slots."""

LOAD_SLACK = 4
"""Answers that a server may have beyond that: with few answers, each one would otherwise be an overload, and
conversations would often move."""


def choose(
    key: str, servers: Sequence[UpstreamServer], other_load: Callable[[str], int] = lambda name: 0
) -> UpstreamServer:
    """Return the server of ``key`` among ``servers``, of which there is at least one.

    :param other_load: returns the number of answers of other fronts on a server, given its name.
    """
    running = [server.running + other_load(server.name) for server in servers]
    total, slots = sum(running) + 1, sum(server.slots for server in servers)
    loads = zip(servers, running, strict=True)
    light = [server for server, answers in loads if answers < load_bound(server, total, slots)]
    return max(light, key=lambda server: _score(server, key))


def load_bound(server: UpstreamServer, running: int, slots: int) -> int:
    """Return the maximum number of answers of ``server``, rounded up.

    :param running: number of running answers of all servers, the new one included.
    :param slots: number of slots of all servers.
    """
    return -(-LOAD_PERCENT * running * server.slots // (100 * slots)) + LOAD_SLACK


def _score(server: UpstreamServer, key: str) -> float:
    """Return a number of which the highest wins: servers win in proportion to their slots."""
    digest = blake2b(f"{server.url} {key}".encode(), digest_size=8).digest()
    return math.log((int.from_bytes(digest) + 0.5) / 2**64) / server.slots
