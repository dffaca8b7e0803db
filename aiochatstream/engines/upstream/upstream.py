"""Addresses of upstream servers, as a user specifies them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from yarl import URL

MAX_SLOTS = 100_000

EXAMPLES = "URLs such as http://host:8000, unix:/path, dns+http://name:8000 or list+http://host/path"


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server, or a name or list of servers, with OpenAI's API.

    url: ``http://host:port`` or ``https://host:port``, also with a path; ``unix:/path`` of a socket;
        ``dns+http://name:port``, each address of the name being a server; ``list+http://host:port/path`` (or https) of
        a JSON list of URLs, or of an object with this list as ``upstreams``.
    slots: maximum number of concurrent answers of each server, 1 to 100,000; None for the pool's.
    api_key: sent as a bearer token to each server, but not to the server of a list.
    name: name of a single server in logs and metrics; None for one from the URL.
    """

    url: str
    slots: int | None = None
    api_key: str | None = field(default=None, repr=False)
    name: str | None = None

    @property
    def is_server(self) -> bool:
        """True for a single server, False for a name or list of servers."""
        return not self.url.startswith(("dns+", "list+"))

    @property
    def label(self) -> str:
        """Name of the server in logs and metrics."""
        return self.name or self.url.removeprefix("http://")


def validated_upstreams(sources: Sequence[str | Upstream]) -> list[Upstream]:
    """Return ``sources`` with URLs in their normal form. Raise ValueError with a sentence if one is invalid."""
    if isinstance(sources, str) or not sources:
        raise ValueError(f"upstreams: must be a list of {EXAMPLES}, with at least one element.")
    upstreams = [validated_upstream(source) for source in sources]
    _check_distinct([upstream.url for upstream in upstreams])
    _check_distinct([upstream.label for upstream in upstreams])
    return upstreams


def validated_upstream(source: str | Upstream) -> Upstream:
    """Return ``source`` with its URL in the normal form. Raise ValueError with a sentence if it is invalid."""
    upstream = source if isinstance(source, Upstream) else Upstream(source)
    if upstream.slots is not None:
        check_slots(upstream.slots)
    if upstream.api_key is not None and not re.fullmatch(r"[!-~]+", upstream.api_key):
        raise ValueError("upstreams: an API key must be printable ASCII characters without spaces.")
    if not isinstance(upstream.url, str):
        raise ValueError(f"upstreams: must be {EXAMPLES}, not {upstream.url!r}.")
    return replace(upstream, url=_normal_url(upstream.url))


def check_slots(slots: int) -> None:
    """Raise ValueError with a sentence if ``slots`` is not a number of slots of a server."""
    if type(slots) is not int or not 1 <= slots <= MAX_SLOTS:
        raise ValueError(f"upstreams: slots must be a whole number from 1 to {MAX_SLOTS:,}, not {slots!r}.")


def _normal_url(text: str) -> str:
    """Return a URL in lower case, without default port, final slash and ``/v1``, so that equal servers are equal."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/"):
            raise ValueError(f"upstreams: must be unix: and an absolute path, not {text!r}.")
        return f"unix:{path}"
    kind, plus, rest = text.rpartition("+") if text.startswith(("dns+", "list+")) else ("", "", text)
    try:
        url = URL(rest)
        port = url.port
    except ValueError:
        raise _invalid(text) from None
    if url.user is not None or url.password is not None:
        raise ValueError(
            "upstreams: must be URLs without user names and passwords; read the API key with --upstream-key-file."
        )
    schemes = {"": ("http", "https"), "dns": ("http",), "list": ("http", "https")}
    if url.scheme not in schemes.get(kind, ()) or not url.host or not port or url.query_string or url.fragment:
        raise _invalid(text)
    path = url.path.rstrip("/")
    normal = url.with_path(path if kind == "list" else path.removesuffix("/v1"))
    if url.is_default_port():
        normal = normal.with_port(None)
    return kind + plus + str(normal).rstrip("/")


def _invalid(url: str) -> ValueError:
    shown = "a URL with an @" if "@" in url else repr(url)  # it may contain a password
    return ValueError(f"upstreams: must be {EXAMPLES}, without a query, not {shown}.")


def _check_distinct(values: Sequence[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"upstreams: must be distinct, not {value!r} twice.")
