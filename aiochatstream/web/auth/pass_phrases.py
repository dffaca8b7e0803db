"""Pass phrases: plain, as a SHA-256 digest, or (better) hashed with scrypt; compared in constant time."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable

MAX_CHARS = 128
"""Maximum length of a phrase. Longer chat messages are never compared with the phrases."""

COST, BLOCK_SIZE, PARALLEL = 1 << 14, 8, 1
"""scrypt's N, r and p (RFC 7914): 16 MiB and about 40 ms per comparison, which delays every short chat message."""

MEMORY_BYTES = 1 << 28
"""Maximum memory of a comparison."""

DIGEST_BYTES = 32

HASH_FORMAT = re.compile(r"scrypt\$(\d{1,9})\$(\d{1,3})\$(\d)\$([^$]+)\$([^$]+)")
"""N, r, p, salt and digest."""

PhraseMatcher = Callable[[str], bool]
"""A function that returns True if a text is the phrase."""


def hash_phrase(phrase: str) -> str:
    """Return the salted hash of ``phrase`` for a role's ``ui_pass_phrase_scrypt``.

    Two calls return two different hashes that both match. Raises ValueError unless ``phrase`` is one line of 1 to 128
    characters.
    """
    check_phrase(phrase)
    salt = secrets.token_bytes(16)
    parts = (base64.b64encode(part).decode() for part in (salt, _scrypt(phrase, salt, COST, BLOCK_SIZE, PARALLEL)))
    return "$".join(["scrypt", str(COST), str(BLOCK_SIZE), str(PARALLEL), *parts])


def is_comparable(text: str) -> bool:
    """Return True if ``text`` has the form of a phrase: one line, not blank, not too long."""
    return len(text) <= MAX_CHARS and text.strip() != "" and text.splitlines() == [text]


def check_phrase(phrase: object) -> str:
    """Return ``phrase``. Raises ValueError if it does not have the form of a phrase."""
    if not isinstance(phrase, str) or not is_comparable(phrase):
        raise ValueError(f"must be one line of 1 to {MAX_CHARS} characters, not blank")
    return phrase


def plain_matcher(phrase: object) -> PhraseMatcher:
    """Return a matcher of ``phrase``. Raises ValueError as :func:`check_phrase`."""
    return _digest_matcher(_sha256(check_phrase(phrase)))


def sha256_matcher(digest: object) -> PhraseMatcher:
    """Return a matcher of the phrase with this SHA-256 digest. Raises ValueError unless it is 64 hexadecimal digits."""
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise ValueError("must be a SHA-256 digest of 64 hexadecimal digits")
    return _digest_matcher(bytes.fromhex(digest))


def scrypt_matcher(hashed: object) -> PhraseMatcher:
    """Return a matcher of the phrase with this hash from :func:`hash_phrase`. The matcher blocks: call it in a thread.

    Raises ValueError for any other value.
    """
    invalid = ValueError("must be what aiochatstream.hash_phrase(phrase) returns")
    match = HASH_FORMAT.fullmatch(hashed) if isinstance(hashed, str) else None
    if match is None:
        raise invalid
    cost, block_size, parallel = map(int, match.groups()[:3])
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in match.groups()[3:])
        _scrypt("", salt, cost, block_size, parallel)  # validates the combination of parameters
    except ValueError:
        raise invalid from None
    if len(digest) != DIGEST_BYTES:
        raise invalid
    return lambda text: hmac.compare_digest(_scrypt(text, salt, cost, block_size, parallel), digest)


def _digest_matcher(digest: bytes) -> PhraseMatcher:
    return lambda text: hmac.compare_digest(_sha256(text), digest)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(_encoded(text)).digest()


def _scrypt(text: str, salt: bytes, cost: int, block_size: int, parallel: int) -> bytes:
    return hashlib.scrypt(
        _encoded(text), salt=salt, n=cost, r=block_size, p=parallel, maxmem=MEMORY_BYTES, dklen=DIGEST_BYTES
    )


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # a header may hold anything
