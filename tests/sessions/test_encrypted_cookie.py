"""Sessions in encrypted cookies."""

from __future__ import annotations

import base64
import json
import os
import random
import time
import zlib
from collections.abc import Callable, Iterator
from http.cookies import SimpleCookie
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp_session import Session
from cryptography.fernet import Fernet

from aiochatstream import CookieStorage, MemoryStorage
from aiochatstream.sessions.encrypted_cookie import Key
from aiochatstream.sessions.session_storage import MAX_COOKIE_BYTES, SessionStorage

KEY, NEW_KEY = Fernet.generate_key().decode(), Fernet.generate_key().decode()

NAME, SECOND = "AIOHTTP_SESSION", "AIOHTTP_SESSION-2"


def noise(bytes_: int) -> str:
    """Return text that cannot be compressed to fewer than ``bytes_`` bytes."""
    return base64.b85encode(random.Random(1).randbytes(bytes_)).decode()  # noqa: S311


async def saved(storage: CookieStorage, cookies: dict[str, str] | None = None, **data: Any) -> SimpleCookie:
    session = Session(None, data=None, new=True)
    session.update(data)
    response = web.Response()
    await storage.save_session(request(cookies or {}), response, session)
    return response.cookies


def request(cookies: dict[str, str]) -> web.Request:
    header = "; ".join(f"{name}={value}" for name, value in cookies.items())
    return make_mocked_request("GET", "/", headers={"Cookie": header} if header else {})


async def loaded(storage: CookieStorage, cookies: dict[str, str]) -> dict[str, Any]:
    return dict(await storage.load_session(request(cookies)))


def values(cookies: SimpleCookie) -> dict[str, str]:
    return {name: cookie.value for name, cookie in cookies.items() if cookie.value}


async def test_a_saved_session_can_be_read_only_with_the_key() -> None:
    storage = CookieStorage(KEY)
    cookies = values(await saved(storage, word="unmistakable", japanese="寿司 🍣"))
    assert list(cookies) == [NAME]
    assert "unmistakable" not in cookies[NAME]
    assert await loaded(storage, cookies) == {"word": "unmistakable", "japanese": "寿司 🍣"}
    assert await loaded(CookieStorage(NEW_KEY), cookies) == {}


async def test_text_is_compressed_and_not_escaped() -> None:
    [cookie] = values(await saved(CookieStorage(KEY), text="日本語の会話です。" * 300)).values()
    assert len(cookie) < 400


async def test_a_session_too_long_for_one_cookie_uses_two() -> None:
    storage = CookieStorage(KEY)
    cookies = await saved(storage, text=noise(4000))
    assert list(values(cookies)) == [NAME, SECOND]
    assert MAX_COOKIE_BYTES - 10 < max(len(cookie.OutputString()) for cookie in cookies.values()) <= MAX_COOKIE_BYTES
    assert await loaded(storage, values(cookies)) == {"text": noise(4000)}


async def test_an_obsolete_second_cookie_is_ignored_and_deleted() -> None:
    storage = CookieStorage(KEY)
    long = values(await saved(storage, text=noise(4000)))
    cookies = await saved(storage, cookies=long, text="short")
    assert cookies[SECOND].value == ""
    assert cookies[SECOND]["max-age"] == "0" or cookies[SECOND]["max-age"] == 0
    assert await loaded(storage, {**long, **values(cookies)}) == {"text": "short"}


async def test_mismatched_cookies_are_a_new_session() -> None:
    storage = CookieStorage(KEY)
    first, second = values(await saved(storage, text=noise(4000))), values(await saved(storage, text=noise(4001)))
    assert await loaded(storage, {NAME: first[NAME], SECOND: second[SECOND]}) == {}
    assert await loaded(storage, {NAME: first[NAME]}) == {}
    assert await loaded(storage, {SECOND: first[SECOND]}) == {}


async def test_an_emptied_session_deletes_both_cookies() -> None:
    storage = CookieStorage(KEY)
    cookies = await saved(storage, cookies={NAME: "x", SECOND: "y"})
    assert {name: cookie.value for name, cookie in cookies.items()} == {NAME: "", SECOND: ""}


async def test_the_first_key_encrypts_and_all_keys_decrypt() -> None:
    old = values(await saved(CookieStorage(KEY), word="stored"))
    rotated = CookieStorage([NEW_KEY, KEY])
    assert await loaded(rotated, old) == {"word": "stored"}
    new = values(await saved(rotated, word="stored"))
    assert await loaded(CookieStorage(NEW_KEY), new) == {"word": "stored"}
    assert await loaded(CookieStorage(KEY), new) == {}


def sealed_at(second: int, **data: Any) -> dict[str, str]:
    """Return a cookie created by a worker whose clock showed ``second``."""
    text = zlib.compress(json.dumps({"created": second, "session": data}).encode())
    return {NAME: Fernet(KEY).encrypt_at_time(text, second).decode()}


@pytest.mark.parametrize(("seconds", "accepted"), [(-86_400, False), (-3_590, True), (90, True), (86_400, True)])
@pytest.mark.parametrize("keys", [KEY, [NEW_KEY, KEY]], ids=["one key", "two keys"])
async def test_a_cookie_of_a_worker_whose_clock_is_ahead_is_accepted(
    seconds: int, accepted: bool, keys: str | list[str]
) -> None:
    cookies = sealed_at(int(time.time()) + seconds, word="stored")
    assert await loaded(CookieStorage(keys, max_age=3_600), cookies) == ({"word": "stored"} if accepted else {})


@pytest.mark.parametrize(
    "key",
    [KEY, KEY.encode(), base64.urlsafe_b64decode(KEY), Fernet(KEY), [KEY]],
    ids=["text", "bytes", "raw", "Fernet", "list"],
)
async def test_keys_are_accepted_in_any_form(key: Key | list[Key]) -> None:
    assert await loaded(CookieStorage(key), values(await saved(CookieStorage(KEY), word="stored"))) == {
        "word": "stored"
    }


@pytest.mark.parametrize("keys", ["", "short", b"x" * 31, [], [KEY, "short"], [None]])
def test_an_invalid_key_is_refused_and_not_displayed(keys: Any) -> None:
    with pytest.raises(ValueError, match=r"^keys: (each must be 32 bytes|must contain at least one key)") as raised:
        CookieStorage(keys)
    assert "short" not in str(raised.value)


@pytest.mark.parametrize("max_bytes", [255, 8001])
def test_max_bytes_has_a_range(max_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"^max_bytes: must be from 256 to 8000, not {max_bytes}"):
        CookieStorage(KEY, max_bytes=max_bytes)


def flipped(sealed: str) -> Iterator[str]:
    """Yield ``sealed`` with each bit of its decoded bytes flipped, one at a time."""
    data = base64.urlsafe_b64decode(sealed)
    for index in range(len(data)):
        for bit in range(8):
            changed = bytes([*data[:index], data[index] ^ (1 << bit), *data[index + 1 :]])
            yield base64.urlsafe_b64encode(changed).decode()


async def test_a_modified_cookie_is_a_new_session() -> None:
    storage = CookieStorage(KEY)
    [sealed] = values(await saved(storage, role="guest")).values()
    count = 0
    for changed in flipped(sealed):
        assert await loaded(storage, {NAME: changed}) == {}
        count += 1
    assert count > 500
    for end in range(len(sealed)):
        assert await loaded(storage, {NAME: sealed[:end]}) == {}


@pytest.mark.parametrize("junk", ["2.", "2.x", "é", "x" * 4000, "gAAAAA==", "%00", "=", "-"])
async def test_an_invalid_cookie_is_a_new_session(junk: str) -> None:
    session = await CookieStorage(KEY).load_session(request({NAME: junk}))
    assert session.new
    assert session.empty


async def test_a_token_for_another_purpose_is_a_new_session() -> None:
    for content in (b"commit:x", b"{}", b"", os.urandom(20)):
        assert await loaded(CookieStorage(KEY), {NAME: Fernet(KEY).encrypt(content).decode()}) == {}


async def test_a_cookie_expires_after_max_age() -> None:
    storage = CookieStorage(Fernet(KEY), max_age=60)
    fernet = Fernet(KEY)
    [sealed] = values(await saved(storage, word="stored")).values()
    old = fernet.encrypt_at_time(fernet.decrypt(sealed.encode()), 1_000_000_000).decode()
    assert await loaded(storage, {NAME: sealed}) == {"word": "stored"}
    assert await loaded(storage, {NAME: old}) == {}
    assert await loaded(CookieStorage(KEY), {NAME: old}) == {"word": "stored"}


@pytest.mark.parametrize("make", [MemoryStorage, lambda **options: CookieStorage(KEY, **options)])
def test_a_secure_cookie_without_domain_and_path_is_bound_to_its_host(make: Callable[..., SessionStorage]) -> None:
    assert make().cookie_name == NAME
    assert make(secure=True).cookie_name == f"__Host-{NAME}"
    assert make(secure=True, domain="chat.example").cookie_name == NAME
    assert make(secure=True, path="/chat").cookie_name == NAME
    assert make(secure=True, cookie_name="mine").cookie_name == "mine"


async def test_set_and_deleted_cookies_have_the_same_attributes() -> None:
    storage = CookieStorage(KEY, secure=True)
    both = await saved(storage, text=noise(4000))
    deleted = await saved(storage, cookies=values(both))
    for cookie in [*both.values(), *deleted.values()]:
        assert (cookie["secure"], cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, True, "Lax", "/")
        assert cookie.key.startswith("__Host-")
    assert len(deleted) == 2
