"""Texts of ``aiochatstream check`` in both languages."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from aiochatstream.cli.check_texts import EN, JA
from aiochatstream.cli.model_checks import CHECKS
from tests.test_texts import placeholders


@pytest.mark.parametrize("name", asdict(EN))
def test_both_locales_have_the_same_placeholders(name: str) -> None:
    english, japanese = getattr(EN, name), getattr(JA, name)
    assert english
    assert any("、" <= letter <= "鿿" for letter in japanese)
    assert placeholders(english) == placeholders(japanese)


def test_every_check_has_a_label() -> None:
    assert all(getattr(EN, name) for name in CHECKS)
