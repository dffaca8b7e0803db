"""bench/browser.py as a user runs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bench.script_runs import run


def test_it_measures_the_page_and_a_long_answer(tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("chromium is missing: apt-get install chromium fonts-noto-cjk")
    ran = run("browser.py", tmp_path, "--rounds", "2", "--tokens", "200")
    assert ran.code == 0, ran.err
    assert "prepaint_ms" in ran.out
    assert "chromium" in ran.json["environment"]
    for one in ran.json["rounds"]:
        assert one["prepaint_ms"] > 0
        assert 10_000 < one["first_bytes"] <= 150_000, "what the page may weigh"
        assert one["again_bytes"] < one["first_bytes"] / 5, "the cache holds"
        assert one["late_bytes"] > 0, "the highlighter comes with the first code"
        assert one["answer_s"] > 0.8


def test_wrong_use_is_told_in_one_sentence(tmp_path: Path) -> None:
    ran = run("browser.py", tmp_path, "--tokens", "0")
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith("browser.py: error: ")
