"""The chat page's files, ready to be sent: hashed and compressed."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "page"

CONTENT_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""What is sent of the folder. Licences, checksums and declarations of types are not."""

INDEX = "index.html"

PRELOADED = ("js/", "vendor/marked.js", "vendor/purify.js")
"""Modules that the browser fetches before it finds them imported. The highlighter's come when they are needed."""


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file, plain and compressed by gzip."""

    content_type: str
    body: bytes
    gzipped: bytes

    @classmethod
    def of(cls, name: str, body: bytes) -> PageFile:
        """The file ``name`` of this content."""
        return cls(CONTENT_TYPES[Path(name).suffix], body, gzip.compress(body, mtime=0))


@dataclass(frozen=True, slots=True)
class PageFiles:
    """The page: its index, and what that loads, by path.

    version: a hash of everything. It is part of the files' URLs, so that they may be cached for ever.
    """

    version: str
    index: PageFile
    files: dict[str, PageFile]

    @classmethod
    def read(cls, folder: Path = FOLDER) -> PageFiles:
        """Read the folder. Blocks; raises OSError."""
        paths = sorted(path for path in folder.rglob("*") if path.suffix in CONTENT_TYPES)
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        digest = hashlib.sha256()
        for name, body in contents.items():
            digest.update(f"{name} {len(body)}\n".encode() + body)
        version = digest.hexdigest()[:16]
        index = contents.pop(INDEX).decode()
        modules = [name for name in contents if name.startswith(PRELOADED) and name.endswith(".js")]
        preloads = "\n    ".join(f'<link rel="modulepreload" href="page/{version}/{name}" />' for name in modules)
        index = index.replace("<!-- modules -->", preloads).replace("page/version/", f"page/{version}/")
        files = {name: PageFile.of(name, body) for name, body in contents.items()}
        return cls(version, PageFile.of(INDEX, index.encode()), files)
