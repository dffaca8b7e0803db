"""Tests of pass phrases: validation, hashing and matching."""

from __future__ import annotations

import base64
import hashlib

import pytest

from aiochatstream import hash_phrase
from aiochatstream.web.auth import pass_phrases

PHRASE = "開け ごま"


@pytest.mark.parametrize(
    "matches",
    [
        pass_phrases.plain_matcher(PHRASE),
        pass_phrases.sha256_matcher(hashlib.sha256(PHRASE.encode()).hexdigest()),
        pass_phrases.sha256_matcher(hashlib.sha256(PHRASE.encode()).hexdigest().upper()),
        pass_phrases.scrypt_matcher(hash_phrase(PHRASE)),
    ],
    ids=["plain", "sha256", "SHA256", "scrypt"],
)
def test_only_the_phrase_itself_matches(matches: pass_phrases.PhraseMatcher) -> None:
    assert matches(PHRASE)
    for other in ("", "開け", PHRASE + " ", PHRASE.upper() + "x", "\udce3", "\ud800"):
        assert not matches(other)


def test_a_hash_is_salted_and_does_not_contain_the_phrase() -> None:
    first, second = hash_phrase("sesame"), hash_phrase("sesame")
    assert first != second
    assert "sesame" not in first
    assert first.startswith("scrypt$16384$8$1$")


def test_scrypt_parameters_are_read_from_the_hash() -> None:
    salt = b"0123456789abcdef"
    digest = hashlib.scrypt(b"sesame", salt=salt, n=1024, r=4, p=2, dklen=32)
    hashed = f"scrypt$1024$4$2${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
    assert pass_phrases.scrypt_matcher(hashed)("sesame")
    assert not pass_phrases.scrypt_matcher(hashed)("Sesame")


@pytest.mark.parametrize("phrase", ["", "  ", "a\nb", "a\n", "x" * 129, None, 5])
def test_an_invalid_phrase_is_a_value_error(phrase: object) -> None:
    with pytest.raises(ValueError, match="must be one line of 1 to 128 characters"):
        hash_phrase(phrase)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be one line of 1 to 128 characters"):
        pass_phrases.plain_matcher(phrase)


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "g" * 64, None, b"0" * 64])
def test_a_sha256_has_64_hexadecimal_digits(digest: object) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        pass_phrases.sha256_matcher(digest)


SALT, DIGEST = (base64.b64encode(bytes(size)).decode() for size in (16, 32))


@pytest.mark.parametrize(
    "hashed",
    [
        "sesame",
        None,
        f"scrypt$16384$8$1${SALT}${SALT}",  # the digest is too short
        f"scrypt$16383$8$1${SALT}${DIGEST}",  # not a power of two
        f"scrypt$16384$0$1${SALT}${DIGEST}",
        f"scrypt$16384$8$0${SALT}${DIGEST}",
        f"scrypt$8388608$8$1${SALT}${DIGEST}",  # 8 GiB
        f"scrypt$131072$1$1${SALT}${DIGEST}",  # RFC 7914: N < 2**(128 * r / 8)
        f"scrypt$16384$8$1$!!${DIGEST}",
    ],
)
def test_an_invalid_hash_is_a_value_error(hashed: object) -> None:
    with pytest.raises(ValueError, match="hash_phrase"):
        pass_phrases.scrypt_matcher(hashed)
