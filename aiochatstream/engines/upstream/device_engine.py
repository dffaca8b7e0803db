"""Engine whose answers the servers of several devices generate, each a process with a copy of the model."""

from __future__ import annotations

import asyncio
from typing import Any

from aiochatstream.engines.upstream.child_servers import ChildServers
from aiochatstream.engines.upstream.engine import UpstreamEngine

POLL_SECONDS = 0.1
"""Seconds between two looks at servers that load the model."""


class DeviceEngine(UpstreamEngine):
    """Generates answers with a server for each device of this machine.

    The application starts while the servers load the model, and is ready when the first of them is.

    :param children: servers of the devices.
    :param options: further arguments of :class:`UpstreamEngine`.

    Raises ValueError that names the parameter.
    """

    loads_slowly = True

    def __init__(self, children: ChildServers, **options: Any) -> None:
        super().__init__(children.upstreams, **options)
        self._children = children

    async def load(self, slots: int | None, context_len: int | None) -> None:
        """Start the servers, and wait until one has loaded the model.

        Raise RuntimeError if each of them has ended before, and OSError if they cannot be started.
        """
        await self._children.open()
        await super().load(slots, context_len)
        while self.unavailable() is not None:
            if self._children.all_failed:
                raise RuntimeError("The servers of all devices have ended; see their messages above.")
            await asyncio.sleep(POLL_SECONDS)

    async def close(self) -> None:
        await super().close()
        await self._children.close()

    def describe(self) -> dict[str, str]:
        described = super().describe()
        return {**described, "servers": f"{described['servers']}, one for each device"}
