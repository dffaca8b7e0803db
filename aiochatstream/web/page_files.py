"""The files of the chat page, hashed and compressed in memory."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "page"

CONTENT_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Content types of the files that are served. Licences, checksums and type declarations in the folder are not."""

INDEX = "index.html"

PRELOADED = ("js/", "vendor/marked.js", "vendor/purify.js")
"""Modules that the index preloads. Those of the highlighter are loaded on demand."""


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file, plain and compressed with gzip."""

    content_type: str
    body: bytes
    gzipped: bytes

    @classmethod
    def of(cls, name: str, body: bytes) -> PageFile:
        """Return the file ``name`` with the content ``body``."""
        return cls(CONTENT_TYPES[Path(name).suffix], body, gzip.compress(body, mtime=0))


@dataclass(frozen=True, slots=True)
class PageFiles:
    """The index of the page, and the files that it loads, by path.

    version: hash of all files. It is part of their URLs, so that caches can keep them permanently.
    """

    version: str
    index: PageFile
    files: dict[str, PageFile]

    @classmethod
    def read(cls, folder: Path = FOLDER) -> PageFiles:
        """Read the files of ``folder``. Blocks. Raises OSError."""
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
