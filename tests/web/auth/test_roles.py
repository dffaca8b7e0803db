"""Tests of roles: validation at construction, allowed endpoints, and phrases."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from aiochatstream import ChatStream, hash_phrase
from aiochatstream.web.auth.roles import ALWAYS_ALLOWED, Roles
from aiochatstream.web.routes import ENDPOINTS
from tests.helpers import echo, role_of

DEFAULT = {"apis": {"allow": ["chat_stream"], "auth_method": "nothing", "use_session": True}}
AGENT = {"apis": {"allow": "all", "auth_method": "nothing", "use_session": False}}


def test_without_client_roles_browsers_have_a_default_role_and_agents_none() -> None:
    roles = Roles(None, ENDPOINTS)
    role = roles.browser_default
    assert role.allow is not None
    assert role.allow | ALWAYS_ALLOWED == {
        "chat_stream",
        "stop",
        "clear_context",
        "set_feedback",
        "history",
        "delete_message",
        "export_conversation",
        "import_conversation",
        "get_generation_params",
        "set_generation_params",
        "get_load",
        "healthz",
        "readyz",
        "metrics",
        "webui_index",
        "openapi",
        "docs",
    }
    assert {name for name in ENDPOINTS if not role.may_call(name)} == {"get_prompt", "get_resource_usage"}
    for name in ("get_prompt", "get_resource_usage", "unknown"):
        assert not role.may_call(name)
    assert not role.enable_dev_tool
    assert not roles.can_be_granted
    assert roles.agent_default is None


def test_probes_metrics_and_commit_are_allowed_in_addition_to_the_list() -> None:
    role = Roles({"user": DEFAULT}, ENDPOINTS).browser_default
    allowed = ["chat_stream", "commit", "healthz", "readyz", "metrics"]  # chat_stream includes commit
    assert [name for name in ENDPOINTS if role.may_call(name)] == allowed
    everything = Roles({"user": role_of("nothing")}, ENDPOINTS).browser_default
    assert all(everything.may_call(name) for name in ENDPOINTS)


def test_phrases_match_roles_by_kind_of_client() -> None:
    sha256 = hashlib.sha256(b"open").hexdigest()
    roles = Roles(
        {
            "user": DEFAULT,
            "agent": AGENT,
            "plain": role_of("ui_pass_phrase", "sesame", enable_dev_tool=True),
            "hashed": role_of("ui_pass_phrase_sha256", sha256),
            "scrypt": role_of("ui_pass_phrase_scrypt", hash_phrase("best")),
            "robot": role_of("header_phrase", "beep", use_session=False),
            "android": role_of("header_phrase_sha256", sha256, use_session=False),
        },
        ENDPOINTS,
    )
    assert (roles.browser_default.name, roles.agent_default and roles.agent_default.name) == ("user", "agent")
    typed = {text: roles.by_typed_phrase(text) for text in ("sesame", "open", "best", "beep", "")}
    assert {text: role and role.name for text, role in typed.items()} == {
        "sesame": "plain",
        "open": "hashed",
        "best": "scrypt",
        "beep": None,
        "": None,
    }
    sent = {phrase: roles.by_header_phrase(phrase) for phrase in ("beep", "open", "sesame", "")}
    assert {phrase: role and role.name for phrase, role in sent.items()} == {
        "beep": "robot",
        "open": "android",
        "sesame": None,
        "": None,
    }
    assert roles.by_granted_name("plain").enable_dev_tool
    for name in ("gone", "robot", "agent", "user", None, 5):  # removed, or not granted by typing
        assert roles.by_granted_name(name) is roles.browser_default


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (5, "client_roles: must be a dict"),
        ({}, "exactly one role must be the browsers' default .* not none"),
        ({"agent": AGENT}, "exactly one role must be the browsers' default .* not none"),
        ({"a": DEFAULT, "b": DEFAULT}, "exactly one role must be the browsers' default .* not 'a' and 'b'"),
        ({"user": DEFAULT, "a": AGENT, "b": AGENT}, "at most one role may be the agents' default .* not 'a' and 'b'"),
        ({"": DEFAULT}, "name must be a string of printable characters, not ''"),
        ({"a\n": DEFAULT}, "name must be a string of printable characters"),
        ({5: DEFAULT}, "name must be a string of printable characters, not 5"),
        ({"x": {}}, r"client_roles\['x'\]: must be a dict with 'apis' as its only key"),
        ({"x": {"apis": {}, "more": 1}}, r"client_roles\['x'\]: must be a dict with 'apis' as its only key"),
        ({"x": {"apis": 1}}, r"client_roles\['x'\]: must be a dict with 'apis' as its only key"),
        ({"x": role_of("nothing", color=1)}, r"client_roles\['x'\]\['apis'\]: unknown field 'color'"),
        ({"x": {"apis": {"auth_method": "nothing"}}}, r"\['x'\].*: allow must be 'all' or a list of endpoint names"),
        ({"x": role_of("nothing", allow="chat_stream")}, r"\['x'\].*: allow must be 'all' or a list"),
        ({"x": role_of("nothing", allow=["chat"])}, r"\['x'\].*: unknown endpoint 'chat' in allow; .* chat_stream, "),
        ({"x": role_of("nothing", allow=[["a"]])}, r"\['x'\].*: unknown endpoint \['a'\] in allow"),
        ({"x": role_of()}, r"\['x'\].*: auth_method must be one of nothing, ui_pass_phrase, "),
        ({"x": role_of("password")}, r"\['x'\].*: auth_method must be one of"),
        ({"x": role_of(auth_method=["nothing"])}, r"\['x'\].*: auth_method must be one of"),
        ({"x": role_of("nothing", use_session=1)}, r"\['x'\].*: use_session must be True or False"),
        ({"x": role_of("nothing", enable_dev_tool="no")}, r"\['x'\].*: enable_dev_tool must be True or False"),
        ({"x": role_of("ui_pass_phrase")}, r"\['x'\].*: ui_pass_phrase is missing"),
        ({"x": role_of("ui_pass_phrase", "")}, r"\['x'\].*: ui_pass_phrase must be one line"),
        (
            {"x": {"apis": {"allow": "all", "auth_method": "nothing", "ui_pass_phrase": "hush"}}},
            r"\['x'\].*: ui_pass_phrase cannot be used with auth_method 'nothing'",
        ),
        (
            {"x": role_of("ui_pass_phrase_sha256", "hush")},
            r"\['x'\].*: ui_pass_phrase_sha256 must be a SHA-256 digest of 64 hexadecimal digits",
        ),
        (
            {"x": role_of("ui_pass_phrase_scrypt", "hush")},
            r"\['x'\].*: ui_pass_phrase_scrypt must be what aiochatstream.hash_phrase\(phrase\) returns",
        ),
        (
            {"x": role_of("ui_pass_phrase", "hush", use_session=False)},
            r"\['x'\].*: use_session must be True if auth_method is 'ui_pass_phrase'",
        ),
        (
            {"x": role_of("header_phrase", "hush")},
            r"\['x'\].*: use_session must be False if auth_method is 'header_phrase'",
        ),
    ],
)
def test_invalid_roles_are_a_value_error_with_role_and_field(roles: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        ChatStream(engine=echo, client_roles=roles)
    assert "hush" not in str(refused.value)


def test_representations_contain_no_secret() -> None:
    roles = {"user": DEFAULT, "admin": role_of("ui_pass_phrase", "sesame")}
    chat_stream = ChatStream(engine=echo, client_roles=roles)
    roles_of_server = chat_stream.roles
    representations = f"{chat_stream!r} {roles_of_server!r} {roles_of_server.by_granted_name('admin')!r}"
    representations += str(vars(roles_of_server))
    assert "admin (ui_pass_phrase)" in representations
    assert "sesame" not in representations
