"""Tests for JSON objects of which a few members change."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream.engines.upstream.json_object import JsonObject

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=5), st.booleans(), st.integers(0, 4) | st.none())
def test_only_the_named_members_change(members: dict[str, object], ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(members, ensure_ascii=ascii_only, indent=indent)
    if "\ud800" <= max(text, default="") <= "\udfff":
        return
    body = JsonObject(text)
    assert body.members.keys() == members.keys()
    assert body.with_members({}) == text.encode(errors="surrogatepass")
    for name in (*members, "new"):
        assert json.loads(body.with_members({name: "x"})) == {**members, name: "x"}


def test_spaces_numbers_and_escapes_stay() -> None:
    text = ' {"a" : 1.0e5 , "model"\t:\n"x", "b":{"model":1}, "\\u006dodel":2, "c":' + "9" * 5000 + "}\n"
    body = JsonObject(text).with_members({"model": "é", "more": {"y": None}})
    assert body.decode() == (
        ' {"more":{"y":null},"a" : 1.0e5 , "model"\t:\n"é", "b":{"model":1}, "\\u006dodel":"é", "c":'
        + "9" * 5000
        + "}\n"
    )


def test_an_empty_object_gets_its_first_members() -> None:
    assert JsonObject(" { } ").with_members({"a": 1, "b": 2}) == b' {"a":1,"b":2 } '


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a"}', '{"a":}', '{"a":1', '{"a":1,}', "{1:1}", '{"a":1 "b":2}'])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="char"):
        JsonObject(text)
