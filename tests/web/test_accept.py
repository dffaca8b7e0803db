"""Tests of parsing Accept-Encoding and qualities."""

from __future__ import annotations

import pytest

from aiochatstream.web.accept import accepts_gzip, parse_qualities


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ([], False),
        ([""], False),
        (["gzip"], True),
        (["deflate, gzip, br"], True),
        (["GZip ; Q=0.5"], True),
        (["x-gzip"], True),
        (["*"], True),
        (["gzip;q=0"], False),
        (["gzip;q=0.000"], False),
        (["gzip ; q = 0"], False),
        (["br", "gzip;q=0"], False),
        (["*, gzip;q=0"], False),
        (["*;q=0"], False),
        (["identity"], False),
        (["identity;q=0"], False),
        (["identity;q=0, gzip"], True),
        (["identity;q=0, *"], True),
        (["gzip;q=0.5, identity"], False),
        (["gzip, identity;q=0.5"], True),
        (["not-gzip"], False),
        (["gzip;q=nan"], False),
        (["gzip;q=1e9"], False),
    ],
)
def test_accepts_gzip_respects_qualities(headers: list[str], accepted: bool) -> None:
    assert accepts_gzip(headers) is accepted


def test_other_parameters_are_ignored() -> None:
    assert parse_qualities(["text/html;level=1;q=0.3, text/plain; charset=utf-8"]) == {
        "text/html": 0.3,
        "text/plain": 1.0,
    }
