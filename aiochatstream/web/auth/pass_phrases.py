"""Pass phrases: kept as they are, as a SHA-256 digest, or (better) hashed with scrypt; compared in constant time."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable

MAX_CHARS = 128
"""Longer phrases are never compared: what is typed into a chat is a message, and most of them are no phrases."""

COST, BLOCK_SIZE, PARALLEL = 1 << 14, 8, 1
"""scrypt's N, r and p (RFC 7914): 16 MiB and some 40 ms a comparison, which every short chat message waits for."""

MEMORY_BYTES = 1 << 28
"""What a comparison may need at most."""

DIGEST_BYTES = 32

HASHED = re.compile(r"scrypt\$(\d{1,9})\$(\d{1,3})\$(\d)\$([^$]+)\$([^$]+)")
"""N, r, p, salt and digest."""

Matcher = Callable[[str], bool]
"""Whether a text is the phrase."""


def hash_phrase(phrase: str) -> str:
    """``phrase`` for a role's ``ui_pass_phrase_scrypt``, salted: two calls give two strings that both match.

    Raises ValueError unless it is one line of 1 to 128 characters.
    """
    check_phrase(phrase)
    salt = secrets.token_bytes(16)
    parts = (base64.b64encode(part).decode() for part in (salt, _scrypt(phrase, salt, COST, BLOCK_SIZE, PARALLEL)))
    return "$".join(["scrypt", str(COST), str(BLOCK_SIZE), str(PARALLEL), *parts])


def is_comparable(text: str) -> bool:
    """Whether ``text`` might be a phrase at all."""
    return len(text) <= MAX_CHARS and text.strip() != "" and text.splitlines() == [text]


def check_phrase(phrase: object) -> str:
    """``phrase`` itself. Raises ValueError for one that nobody could type in."""
    if not isinstance(phrase, str) or not is_comparable(phrase):
        raise ValueError(f"must be one line of 1 to {MAX_CHARS} characters, not blank")
    return phrase


def plain(phrase: object) -> Matcher:
    """Matches ``phrase`` itself. Raises ValueError as :func:`check_phrase`."""
    return _digest_matcher(_sha256(check_phrase(phrase)))


def sha256(digest: object) -> Matcher:
    """Matches what has this SHA-256 in hexadecimal. Raises ValueError unless it is 64 such digits."""
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise ValueError("must be a SHA-256 digest of 64 hexadecimal digits")
    return _digest_matcher(bytes.fromhex(digest))


def scrypt(hashed: object) -> Matcher:
    """Matches what :func:`hash_phrase` made ``hashed`` of. The matcher blocks: call it in a thread.

    Raises ValueError for anything else.
    """
    refusal = ValueError("must be what aiochatstream.hash_phrase(phrase) returns")
    found = HASHED.fullmatch(hashed) if isinstance(hashed, str) else None
    if found is None:
        raise refusal
    cost, block_size, parallel = map(int, found.groups()[:3])
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in found.groups()[3:])
        _scrypt("", salt, cost, block_size, parallel)  # it knows best which parameters go together
    except ValueError:
        raise refusal from None
    if len(digest) != DIGEST_BYTES:
        raise refusal
    return lambda text: hmac.compare_digest(_scrypt(text, salt, cost, block_size, parallel), digest)


def _digest_matcher(digest: bytes) -> Matcher:
    return lambda text: hmac.compare_digest(_sha256(text), digest)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(_encoded(text)).digest()


def _scrypt(text: str, salt: bytes, cost: int, block_size: int, parallel: int) -> bytes:
    return hashlib.scrypt(
        _encoded(text), salt=salt, n=cost, r=block_size, p=parallel, maxmem=MEMORY_BYTES, dklen=DIGEST_BYTES
    )


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # a header may hold anything
