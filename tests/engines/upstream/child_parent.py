"""A parent of two child servers, which only waits: its arguments are the path of the children's log, and their mode."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiochatstream.engines.upstream.child_servers import ChildServers
from tests.processes import PYTHON


def command(log: Path, mode: str, device: str, path: Path) -> list[str]:
    """Return the command of a child server."""
    program = [PYTHON, "-m", "tests.engines.upstream.child_program"]
    return [*program, "--unix", str(path), "--log", str(log), "--device", device, "--mode", mode]


async def main() -> None:
    log, mode = Path(sys.argv[1]), sys.argv[2]
    children = ChildServers(lambda device, path: command(log, mode, device, path), ["cpu", "cpu"])
    await children.open()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
