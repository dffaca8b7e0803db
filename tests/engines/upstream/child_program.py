"""A child server for tests: a fake upstream at a unix socket, which appends a line of JSON to a log when it starts.

Its ``--mode`` is ``serve``; ``exit`` ends it with status 3 at once; ``ignore`` lets it ignore SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from pathlib import Path

from aiohttp import web

from aiochatstream.engines.upstream.child_servers import end_with_parent
from tests.fake_upstream import FakeUpstream


class UnixUpstream(FakeUpstream):
    """A fake upstream at a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    async def listen(self) -> None:
        await web.UnixSite(self._runner, self.path).start()


async def serve(path: Path) -> None:
    stopped = asyncio.Event()
    if signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with UnixUpstream(path):
        await stopped.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--unix", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--mode", default="serve")
    options = parser.parse_args()
    mode = os.stat(options.unix.parent).st_mode & 0o777
    facts = {
        "pid": os.getpid(),
        "device": options.device,
        "folder_mode": mode,
        "threads": os.environ["OMP_NUM_THREADS"],
    }
    with options.log.open("a") as log:
        log.write(json.dumps(facts) + "\n")
    if options.mode == "exit":
        raise SystemExit(3)
    if options.mode == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    asyncio.run(serve(options.unix))


if __name__ == "__main__":
    main()
