from __future__ import annotations

import re
from typing import Any

import pytest

from aiochatstream.engines.upstream import Upstream
from aiochatstream.engines.upstream.upstream import validated_upstreams


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://GPU1:8000", "http://gpu1:8000"),
        ("http://gpu1:8000/", "http://gpu1:8000"),
        ("http://gpu1:8000/v1", "http://gpu1:8000"),
        ("http://gpu1:8000/v1/", "http://gpu1:8000"),
        ("http://gpu1:80", "http://gpu1"),
        ("https://host:443/models/a b/v1", "https://host/models/a%20b"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("dns+http://vllm.default.svc:8000/v1", "dns+http://vllm.default.svc:8000"),
        ("list+https://ray-head:8000/v1/", "list+https://ray-head:8000/v1"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("unix:///run/a.sock", "unix:/run/a.sock"),
    ],
)
def test_urls_have_a_normal_form(url: str, normal: str) -> None:
    assert validated_upstreams([url]) == [Upstream(normal)]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gpu1",
        "gpu1:8000",
        "ftp://gpu1",
        "http://",
        "http://gpu1:99999",
        "http://gpu1:8000/?a=b",
        "http://gpu1:8000/#a",
        "dns+https://gpu1:8000",
        "list+unix:/a",
        "dns+list+http://gpu1",
        None,
    ],
)
def test_other_urls_are_refused(url: Any) -> None:
    with pytest.raises(ValueError, match=r"^upstreams: must be URLs such as http://host:8000, .*, not ") as error:
        validated_upstreams([url])
    assert repr(url) in str(error.value)


def test_a_unix_socket_needs_an_absolute_path() -> None:
    with pytest.raises(ValueError, match=r"^upstreams: must be unix: and an absolute path, not 'unix:a.sock'\.$"):
        validated_upstreams(["unix:a.sock"])


@pytest.mark.parametrize("url", ["http://anna:secret@gpu1", "http://secret@gpu1", "list+http://:secret@gpu1/"])
def test_credentials_in_urls_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"^upstreams: .*--upstream-key-file") as error:
        validated_upstreams([url])
    assert "secret" not in str(error.value)


def test_an_invalid_url_with_credentials_is_not_repeated() -> None:
    with pytest.raises(ValueError, match=r"^upstreams: must be URLs") as error:
        validated_upstreams(["http://anna:secret@gpu1:port"])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "sources",
    [
        ["http://gpu1:8000", "http://GPU1:8000/v1"],
        [Upstream("http://a", name="gpu"), Upstream("http://b", name="gpu")],
        [Upstream("http://a", name="b:8000"), "http://b:8000"],
    ],
)
def test_servers_and_their_names_are_distinct(sources: list[str | Upstream]) -> None:
    with pytest.raises(ValueError, match=r"^upstreams: must be distinct, not '.*' twice\.$"):
        validated_upstreams(sources)


@pytest.mark.parametrize("sources", [[], (), "http://gpu1:8000"])
def test_the_list_has_an_element(sources: Any) -> None:
    with pytest.raises(ValueError, match=r"^upstreams: must be a list of URLs .* with at least one element\.$"):
        validated_upstreams(sources)


@pytest.mark.parametrize("slots", [0, -1, 100_001, 1.5, True, "8"])
def test_slots_have_a_range(slots: Any) -> None:
    sentence = f"upstreams: slots must be a whole number from 1 to 100,000, not {slots!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        validated_upstreams([Upstream("http://gpu1", slots=slots)])


@pytest.mark.parametrize("key", ["", "se cret", "secret\r\nHost: other", "sécret"])
def test_keys_fit_into_a_header_and_are_not_repeated(key: str) -> None:
    with pytest.raises(ValueError, match=r"^upstreams: an API key must be printable ASCII") as error:
        validated_upstreams([Upstream("http://gpu1", api_key=key)])
    assert not key or key not in str(error.value)


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(Upstream("http://gpu1", api_key="secret"))
