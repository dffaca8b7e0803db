"""The messages of both locales."""

from __future__ import annotations

from dataclasses import asdict
from string import Formatter

import pytest

from aiochatstream.texts import EN, JA, locale_of


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


@pytest.mark.parametrize("name", asdict(EN))
def test_both_locales_say_something_and_fill_in_the_same(name: str) -> None:
    english, japanese = getattr(EN, name), getattr(JA, name)
    assert english
    assert not english.isascii() or english != japanese
    assert any("ぁ" <= letter <= "鿿" for letter in japanese)
    assert placeholders(english) == placeholders(japanese)


@pytest.mark.parametrize(
    ("environment", "locale"),
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja"}, "ja"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "jam_JM"}, "en"),
        ({"LANG": "ja_JP.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US", "LC_ALL": "ja_JP", "LC_MESSAGES": "en_US"}, "ja"),
        ({"LANG": "ja_JP", "LC_ALL": ""}, "ja"),
    ],
)
def test_the_environment_says_the_locale(environment: dict[str, str], locale: str) -> None:
    assert locale_of(environment) == locale
