"""Reading of files that contain secrets."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

logger = logging.getLogger(__name__)


def read_secrets(path: Path) -> str:
    """Return the text of ``path``. Logs a warning if every user of the machine can read or change the file.

    Raises OSError.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        mode = os.fstat(file.fileno()).st_mode
        if os.name == "posix" and stat.S_ISREG(mode) and mode & (stat.S_IROTH | stat.S_IWOTH):
            logger.warning("%s: every user of this machine can read or change it. Restrict it: chmod o= %s", path, path)
        return file.read()
