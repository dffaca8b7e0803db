"""Tests for the reading of relayed requests."""

from __future__ import annotations

from typing import Any

import pytest

from aiochatstream.web.openai.relay_request import first_texts, prompt_count

PARTS = [{"type": "text", "text": "a"}]


@pytest.mark.parametrize(
    ("members", "texts"),
    [
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}, ["s", "u"]),
        ({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}, ["u"]),
        ({"messages": [{"role": "developer", "content": "d"}, {"role": "user", "content": PARTS}]},
         ["d", '[{"type":"text","text":"a"}]']),
        ({"instructions": "i", "input": "u"}, ["i", "u"]),
        ({"input": [{"role": "user", "content": "u"}, {"role": "user", "content": "v"}]}, ["u"]),
        ({"input": ["x", "y"]}, ["x"]),
        ({"prompt": "p"}, ["p", "null"]),
        ({"messages": 7}, ["7"]),
        ({"messages": [{"role": ["odd"]}]}, ["null"]),
        ({}, ["null"]),
    ],
)  # fmt: skip
def test_the_texts_before_the_first_answer_identify_a_conversation(members: dict[str, Any], texts: list[str]) -> None:
    assert first_texts(members) == texts


@pytest.mark.parametrize(
    ("prompt", "count"), [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2]], 2), ([], 1), (None, 1), (7, 1)]
)
def test_each_prompt_is_counted(prompt: Any, count: int) -> None:
    assert prompt_count(prompt) == count
