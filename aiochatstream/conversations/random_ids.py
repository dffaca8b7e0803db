"""Random ids that cannot be guessed."""

from __future__ import annotations

import re
import secrets
from typing import TypeGuard

RANDOM_ID = re.compile("[A-Za-z0-9_-]{43}")


def random_id() -> str:
    """Return 256 random bits as 43 characters that are safe in URLs, cookies and file names."""
    return secrets.token_urlsafe(32)


def is_random_id(value: object) -> TypeGuard[str]:
    """Return True if ``value`` has the form of :func:`random_id`."""
    return isinstance(value, str) and RANDOM_ID.fullmatch(value) is not None
