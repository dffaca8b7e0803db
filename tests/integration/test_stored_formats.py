"""Tests of data that the version before 0.2.0 stored: clients and databases still have it after an update."""

from __future__ import annotations

import json
import zlib
from typing import Any

import aiohttp_session
from aiohttp import web
from cryptography.fernet import Fernet

from aiochatstream import ChatStream, Conversation, CookieStorage, Turn
from aiochatstream.sessions.commit import PURPOSE, Commit
from tests.helpers import browser, echo, serving

KEY = Fernet.generate_key()

TURN: Any = {"user": "Hello 東京", "answer": "Hello", "message_id": "c", "state": "interrupted"}

CONVERSATION: Any = {"turns": [TURN], "number": 3, "begun": "c", "first": 0}

COMMIT = {
    "user_id": "user",
    "name": "ns/main",
    "number": 2,
    "parent": "b",
    "begun": "c",
    "turn": TURN,
    "replaces": 1,
    "told": 0,
}

SEALED = (
    "c-pI0Dk&|>D^{|Ku2w27PAyWhQu0X6$;nrEHh1HbU2BwdloIob%dv^)rWO|`rl-bdrU2!V(oB+*lFgHJQw`D#bxl%C4RtLnER%JUlTytSEfbTC64"
    "R1^dWuUDOHzT#lk;;6a#DfJ+E^W>ywcnxkOhW1N=d2drFp~~mzG&nT%u%UPzwNya6;4"
)

SESSION = {
    "id": "Ib7DaLXGti86aLH7_1NMudm9ism2lbm0NpHDUL1QXYk",
    "conversations": {"ns/main": {"sealed": SEALED, "awaits_answer": False}},
    "ns/params": {"number": 1, "values": {"temperature": 0.25, "top_k": 7}},
    "was": ["5sQPxY7t6kt8m6gR2lzrCq9ifEBaYCWYDXMET0l8_0w"],
    "roles": {"ns": "dev"},
}

ROLES: dict[str, Any] = {
    "default": {"apis": {"allow": ["history", "get_generation_params"], "auth_method": "nothing", "use_session": True}},
    "dev": {"apis": {"allow": "all", "auth_method": "ui_pass_phrase", "ui_pass_phrase": "secret", "use_session": True}},
}


def test_a_stored_conversation_is_read_and_written_unchanged() -> None:
    conversation = Conversation((Turn(**TURN),), number=3, turn_id="c", first=0)
    assert Conversation.from_dict(CONVERSATION) == conversation
    assert conversation.to_dict() == CONVERSATION


def test_a_commit_token_is_read_and_written_unchanged() -> None:
    fernet = Fernet(KEY)
    commit = Commit("user", "ns/main", 2, "b", "c", Turn(**TURN), replaces=1, context_turns=0)
    assert Commit.open(fernet.encrypt(PURPOSE + zlib.compress(json.dumps(COMMIT).encode())).decode(), fernet) == commit
    token = fernet.decrypt(commit.seal(fernet).encode())
    assert json.loads(zlib.decompress(token.removeprefix(PURPOSE))) == COMMIT


async def test_a_session_in_a_cookie_is_read() -> None:
    app = web.Application()
    aiohttp_session.setup(app, CookieStorage(KEY))
    ChatStream(engine=echo, namespace="ns", client_roles=ROLES).add_endpoints(app)
    data = {"created": 1_796_002_558, "session": {"aiochatstream": SESSION}}
    cookie = Fernet(KEY).encrypt(zlib.compress(json.dumps(data).encode())).decode()
    async with serving(app) as url, browser(url) as client:
        client.session.cookie_jar.update_cookies({"AIOHTTP_SESSION": cookie})
        history = await (await client.session.get(f"{url}/history")).json()
        assert [message["content"] for message in history["messages"][:2]] == ["Hello 東京", "Hello 東京"]
        params = (await (await client.session.get(f"{url}/get_generation_params")).json())["generation_params"]
        assert (params["temperature"], params["top_k_value"]) == (0.25, 7)
        assert (await client.session.get(f"{url}/get_load")).status == 200  # of the role only
