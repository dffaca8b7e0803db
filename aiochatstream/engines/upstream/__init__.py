"""Answers from other servers: any number of servers with OpenAI's API, behind this one."""

from aiochatstream.engines.upstream.engine import UpstreamEngine
from aiochatstream.engines.upstream.upstream import Upstream

__all__ = ["Upstream", "UpstreamEngine"]
