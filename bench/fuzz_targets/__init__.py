"""Fuzz targets: one module each, with ``def fuzz(seconds: float, seed: int) -> Findings``.

``bench/fuzz.py`` runs each module of this folder in its own process.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Findings:
    """Result of one target.

    tried: number of inputs.
    faults: one line for each input that broke a promise, with what reproduces it.
    """

    tried: int = 0
    faults: list[str] = field(default_factory=list)


def rounds(seconds: float, seed: int) -> Iterator[int]:
    """Yield seeds, one for each round, until ``seconds`` have passed; at least one."""
    end = time.monotonic() + seconds
    while True:
        yield seed
        seed += 1
        if time.monotonic() >= end:
            return


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[int]:
    """Serve ``app`` on a loopback port in this block, and yield the port."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
