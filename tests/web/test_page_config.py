"""Tests of the configuration of the chat page."""

from __future__ import annotations

import re
from typing import Any

import pytest

from aiochatstream import ChatStream
from tests.helpers import echo


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("dark", "web_ui_params: must be a dict, not 'dark'"),
        ({"colour": "#fff"}, "web_ui_params: unknown field 'colour'; choose from title, welcome"),
        ({"accent": "red"}, "web_ui_params.accent: must be a colour as '#1a7f64'"),
        ({"theme": "blue"}, "web_ui_params.theme: must be 'light' or 'dark'"),
        ({"title": ""}, "web_ui_params.title: must be a string of 1 to 200 characters"),
        ({"title": {"fr": "Bonjour"}}, "web_ui_params.title: must be a string"),
        ({"examples": ["x"] * 9}, "web_ui_params.examples: must be a list of up to 8 strings"),
        ({"avatar": "https://elsewhere.example/a.png"}, "web_ui_params.avatar: must be 1 to 4 characters"),
        ({"frame_ancestors": ["*; script-src *"]}, "web_ui_params.frame_ancestors: must be a list of"),
    ],
)
def test_an_invalid_page_option_is_a_value_error_with_its_name(params: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ChatStream(engine=echo, web_ui_params=params)
