"""The address that ``serve`` listens on."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from aiochatstream.cli import listening
from aiochatstream.texts import texts_for

TEXTS = texts_for("en")


def test_only_the_owner_may_open_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with listening.listen_at(path, TEXTS), socket.socket(socket.AF_UNIX) as client:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client.connect(str(path))


def test_a_socket_of_a_process_that_was_killed_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    listening.listen_at(path, TEXTS).close()
    with listening.listen_at(path, TEXTS), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_another_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    path.write_text("text")
    with pytest.raises(OSError, match=r"a\.sock"):
        listening.listen_at(path, TEXTS)
    assert path.read_text() == "text"
