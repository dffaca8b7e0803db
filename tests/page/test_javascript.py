"""The page's modules by themselves: what the ``*.test.js`` beside this file promise."""

from __future__ import annotations

import subprocess
from pathlib import Path

import playwright

HERE = Path(__file__).parent

NODE = Path(playwright.__file__).parent / "driver" / "node"
"""Playwright brings one, which knows modules without being told; Debian's is older."""


def test_the_units_do_as_their_tests_say() -> None:
    files = sorted(file.name for file in HERE.glob("*.test.js"))
    command = [NODE, "--test", "--test-isolation=none", *files]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
