"""Tests of the page's JavaScript modules: the ``*.test.js`` files in this folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

import playwright

HERE = Path(__file__).parent

NODE = Path(playwright.__file__).parent / "driver" / "node"
"""Node.js as bundled with Playwright; that of Debian is older."""


def test_javascript_modules() -> None:
    files = sorted(file.name for file in HERE.glob("*.test.js"))
    command = [str(NODE), "--test", "--test-isolation=none", *files]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
