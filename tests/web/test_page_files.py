"""Tests of the files of the chat page: version, size, packaging and vendored libraries."""

from __future__ import annotations

import configparser
import hashlib
from pathlib import Path

from aiochatstream.web.page_files import FOLDER, PageFiles

ROOT = Path(__file__).parents[2]


COMPRESSED_BYTES = 155_000
"""Maximum compressed size of the whole page."""


def test_the_version_depends_on_every_byte(tmp_path: Path) -> None:
    (tmp_path / "js").mkdir()
    (tmp_path / "index.html").write_text("<!-- modules --><link href='page/version/a.css' />")
    (tmp_path / "a.css").write_text("a {}")
    (tmp_path / "js" / "main.js").write_text("1")
    first = PageFiles.read(tmp_path)
    assert first.index.body.decode() == (
        f'<link rel="modulepreload" href="page/{first.version}/js/main.js" />'
        f"<link href='page/{first.version}/a.css' />"
    )
    assert PageFiles.read(tmp_path).version == first.version
    (tmp_path / "js" / "main.js").write_text("2")
    assert PageFiles.read(tmp_path).version != first.version


def test_the_page_is_small() -> None:
    files = PageFiles.read()
    assert len(files.index.gzipped) + sum(len(file.gzipped) for file in files.files.values()) < COMPRESSED_BYTES


def test_the_wheel_contains_the_files_of_the_page() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["aiochatstream"].split()
    packed = {path for pattern in patterns for path in (ROOT / "aiochatstream").glob(pattern)}
    assert {FOLDER / name for name in ("index.html", *PageFiles.read().files)} <= packed
    assert set((FOLDER / "vendor").glob("LICENSE-*")) <= packed


def test_the_vendored_libraries_match_their_checksums() -> None:
    vendor = FOLDER / "vendor"
    lines = [line.split("  ") for line in (vendor / "SHA256SUMS").read_text().splitlines()]
    checksums = {name: digest for digest, name in lines}
    assert {path.relative_to(vendor).as_posix() for path in vendor.rglob("*.js")} <= {name[2:] for name in checksums}
    for name, digest in checksums.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest, name
