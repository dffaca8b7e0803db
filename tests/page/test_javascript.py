"""The page's modules by themselves, in node: what the ``*.test.js`` beside this file promise, and their types."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def node() -> str:
    path = shutil.which("node")
    if path is None:
        pytest.skip("node is missing: apt-get install npm")
    return path


def test_the_units_do_as_their_tests_say(node: str) -> None:
    run(node, "--test", *sorted(str(file) for file in HERE.glob("*.test.js")))
