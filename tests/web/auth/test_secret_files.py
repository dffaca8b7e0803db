"""Tests of files with secrets, which only their owner should be able to access."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from aiochatstream.cli import session_options
from aiochatstream.texts import EN
from aiochatstream.web.openai.keys import ApiKeys


def session_keys(file: Path) -> None:
    options = argparse.Namespace(session="cookie", secret_key_file=file, dev=False, redis=None, secure=False)
    session_options.configure(options, EN, {})


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o640, False), (0o644, True), (0o602, True)])
@pytest.mark.parametrize("read", [session_keys, ApiKeys])
def test_a_key_file_that_others_can_read_or_change_logs_a_warning(
    read: type[ApiKeys], mode: int, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = Fernet.generate_key()
    file = tmp_path / "key"
    file.write_bytes(key)
    file.chmod(mode)
    read(file)
    assert len(caplog.messages) == warns
    assert all(str(file) in message and key.decode() not in message for message in caplog.messages)
