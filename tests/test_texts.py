"""Texts of both locales."""

from __future__ import annotations

import re
from dataclasses import asdict
from string import Formatter

import pytest

from aiochatstream.texts import EN, JA, LOCALES, Locale, locale_from_environment, texts_for


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


@pytest.mark.parametrize("name", asdict(EN))
def test_both_locales_have_the_same_placeholders(name: str) -> None:
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
def test_the_locale_is_read_from_the_environment(environment: dict[str, str], locale: Locale) -> None:
    assert locale_from_environment(environment) == locale


def test_an_unknown_locale_is_refused() -> None:
    assert [texts_for(locale) for locale in LOCALES] == [EN, JA]
    with pytest.raises(ValueError, match=r"^locale: must be 'en' or 'ja', not 'fr'\.$"):
        texts_for("fr")  # type: ignore[arg-type]


def test_japanese_texts_use_the_terms_of_the_documentation() -> None:
    text = "\n".join(asdict(JA).values())
    for term in ("回答", "クッキー", "パラメータ(?!ー)", "ブラウザ(?!ー)", "サーバ(?!ー)", "ユーザ(?!ー)"):
        assert not re.search(term, text), term
