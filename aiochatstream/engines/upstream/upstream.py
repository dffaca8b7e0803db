"""Addresses of upstream servers, as a user specifies them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server, or a name or list of servers, with OpenAI's API.

    url: ``http://host:port`` or ``https://host:port``, also with a path; ``unix:/path`` of a socket;
        ``dns+http://name:port``, each address of the name being a server; ``list+http://host:port/path`` of a JSON list
        of URLs, or of an object with this list as ``upstreams``.
    slots: maximum number of concurrent answers of each server, at least 1; None for the pool's.
    api_key: sent as a bearer token to each server.
    name: name in logs and metrics; None for one from the URL.
    """

    url: str
    slots: int | None = None
    api_key: str | None = field(default=None, repr=False)
    name: str | None = None
