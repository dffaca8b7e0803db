"""Scanning of JSON objects that arrive in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream.engines.transformers.json_scanner import MAX_DEPTH, InvalidJSON, ObjectScanner
from aiochatstream.engines.transformers.marked_text import MarkedText

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


def scan(text: str, step: int, **options: Any) -> tuple[int | None, str]:
    """Return the index after the object in ``text``, and its standard JSON."""
    source, scanner = MarkedText(None), ObjectScanner(**options)
    for at in range(0, len(text), step):
        source.append(text[at : at + step], control=False)
        end = scanner.scan(source)
        if end is not None:
            return end, scanner.json
    return None, scanner.json


@given(
    st.dictionaries(st.text(), VALUES),
    st.sampled_from([None, 2]),
    st.booleans(),
    st.integers(1, 50),
    st.floats(0, 1, exclude_max=True),
)
@settings(deadline=None)
def test_objects_are_scanned_in_pieces(
    value: dict[str, Any], indent: int | None, ascii_only: bool, step: int, share: float
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    end, scanned = scan(f"{text} more", step)
    assert end == len(text)
    assert json.loads(scanned) == value
    assert scan(text[: int(share * len(text))], step)[0] is None


@pytest.mark.parametrize("step", [1, 2, 100])
def test_raw_control_characters_in_strings_are_escaped(step: int) -> None:
    assert json.loads(scan('{"a": "1\n\t2"}', step)[1]) == {"a": "1\n\t2"}


@pytest.mark.parametrize("step", [1, 2, 100])
def test_a_dialect_becomes_standard_json(step: int) -> None:
    text = '{a:<|"|>"x"\\, {b:1}\n<|"|>, "c":["d",<|"|><|"|>,-1.5e3,true,null],e:{}}'
    _, scanned = scan(text, step, delimiters=[('<|"|>', '<|"|>')], bare_keys=True)
    assert json.loads(scanned) == {"a": '"x"\\, {b:1}\n', "c": ["d", "", -1500, True, None], "e": {}}


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[",
        '"',
        "1 ",
        "{a",
        "{1",
        "{]",
        "{,",
        '{"a"}',
        '{"a",',
        '{"a":}',
        '{"a"::',
        '{"a":1 2',
        '{"a":1,}',
        '{"a":[}',
        '{"a":[1,]',
        '{"a":]',
        '{"a":nul ',
        '{"a":nil',
        '{"a":NaN',
        '{"a":01',
        '{"a":1.,',
        '{"a":' + "1" * 500,
        r'{"a":"\x',
        r'{"a":"\u12g',
        "{'a",
        "{" * 2,
        '{"a":' * (MAX_DEPTH + 1),
    ],
)
def test_invalid_json_is_noticed_immediately(text: str) -> None:
    for step in (1, 1000):
        with pytest.raises(InvalidJSON):
            scan(text, step)
