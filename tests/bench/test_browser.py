"""bench/browser.py, as a user runs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bench.script_runs import run


def test_the_page_and_a_long_answer_are_measured(tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("chromium is missing: apt-get install chromium fonts-noto-cjk")
    result = run("browser.py", tmp_path, "--rounds", "1", "--tokens", "100")
    assert result.code == 0, result.err
    assert "first_paint_ms" in result.out
    assert "chromium" in result.json["environment"]
    for figures in result.json["rounds"]:
        assert figures["first_paint_ms"] > 0
        assert 10_000 < figures["first_bytes"] <= 150_000, "limit of the page's size"
        assert figures["again_bytes"] < figures["first_bytes"] / 5, "the second visit uses the cache"
        assert figures["late_bytes"] > 0, "the first code loads the highlighter"
        assert figures["answer_s"] > 0.4


def test_wrong_use_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    result = run("browser.py", tmp_path, "--tokens", "0", forked=True)
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("browser.py: error: ")
