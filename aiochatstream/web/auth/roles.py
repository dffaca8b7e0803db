"""Roles: how clients obtain them, and which endpoints they may call. Independent of HTTP."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiochatstream.web.auth import pass_phrases
from aiochatstream.web.auth.pass_phrases import PhraseMatcher

NO_PHRASE = "nothing"

UI_METHODS = {
    "ui_pass_phrase": pass_phrases.plain_matcher,
    "ui_pass_phrase_sha256": pass_phrases.sha256_matcher,
    "ui_pass_phrase_scrypt": pass_phrases.scrypt_matcher,
}
"""Methods by which a phrase typed into the chat grants the role to the session."""

HEADER_METHODS = {"header_phrase": pass_phrases.plain_matcher, "header_phrase_sha256": pass_phrases.sha256_matcher}
"""Methods by which a client without a session sends the phrase in a header of each request."""

PHRASE_METHODS = UI_METHODS | HEADER_METHODS

AUTH_METHODS = (NO_PHRASE, *PHRASE_METHODS)

PROBES = frozenset({"healthz", "readyz"})
"""Endpoints for load balancers and orchestrators, which may use any host name."""

ALWAYS_ALLOWED = PROBES | {"metrics"}
"""Endpoints that need no role: load balancers have none, and ``allow_metrics`` controls /metrics."""

ALLOWED_WITH = {"commit": "chat_stream"}
"""Endpoints that are allowed together with another endpoint."""

ALLOWED_BY_DEFAULT = frozenset(
    {
        "chat_stream",
        "stop",
        "clear_context",
        "history",
        "delete_message",
        "export_conversation",
        "import_conversation",
        "set_feedback",
        "get_generation_params",
        "set_generation_params",
        "get_load",
        "webui_index",
        "openapi",
        "docs",
    }
)
"""Endpoints that clients may call on a server without ``client_roles``: those of the chat page, and get_load."""


@dataclass(frozen=True)
class Role:
    """A role of clients.

    allow: names of the endpoints that clients may call; None for all.
    auth_method: the way in which clients obtain the role, one of :data:`AUTH_METHODS`.
    use_session: True for browsers, which have a session; False for agents, which have none.
    matches: matcher of the role's phrase.
    """

    name: str
    allow: frozenset[str] | None
    auth_method: str = NO_PHRASE
    use_session: bool = True
    enable_dev_tool: bool = False
    matches: PhraseMatcher | None = field(default=None, repr=False)

    def may_call(self, endpoint: str) -> bool:
        """Return True if clients with this role may call ``endpoint``."""
        return endpoint in ALWAYS_ALLOWED or self.allow is None or ALLOWED_WITH.get(endpoint, endpoint) in self.allow


class Roles:
    """All roles of a server.

    :param client_roles: chatstream's format, ``{name: {"apis": {"allow": "all" | [endpoint names], "auth_method": ...,
        "use_session": bool = True, "enable_dev_tool": bool = False, <auth_method>: <secret>}}}``. None: a single role,
        for all browsers.
    :param endpoints: names of all endpoints.

    Raises ValueError, with the role and the field in the message.
    """

    def __init__(self, client_roles: Mapping[str, Any] | None, endpoints: Collection[str]) -> None:
        if client_roles is None:
            self._roles = {"default": Role("default", ALLOWED_BY_DEFAULT)}
        elif isinstance(client_roles, Mapping):
            self._roles = {name: _parse_role(name, value, endpoints) for name, value in client_roles.items()}
        else:
            raise ValueError("client_roles: must be a dict of roles by name.")
        roles = self._roles.values()
        without_phrase = [role for role in roles if role.auth_method == NO_PHRASE]
        browsers = [role for role in without_phrase if role.use_session]
        agents = [role for role in without_phrase if not role.use_session]
        if len(browsers) != 1:
            raise ValueError(
                f"client_roles: exactly one role must be the browsers' default (auth_method {NO_PHRASE!r}, use_session "
                f"True), not {_names(browsers)}."
            )
        if len(agents) > 1:
            raise ValueError(
                f"client_roles: at most one role may be the agents' default (auth_method {NO_PHRASE!r}, use_session "
                f"False), not {_names(agents)}."
            )
        self.browser_default = browsers[0]
        self.agent_default = agents[0] if agents else None
        self._ui = [role for role in roles if role.auth_method in UI_METHODS]
        self._header = [role for role in roles if role.auth_method in HEADER_METHODS]

    def __repr__(self) -> str:
        return f"<Roles {', '.join(f'{role.name} ({role.auth_method})' for role in self._roles.values())}>"

    @property
    def can_be_granted(self) -> bool:
        """True if sessions can have a role other than the default."""
        return bool(self._ui)

    def by_granted_name(self, name: object) -> Role:
        """Return the role ``name``, granted to a session earlier; the default if that role can no longer be granted."""
        return next((role for role in self._ui if role.name == name), self.browser_default)

    def by_typed_phrase(self, text: str) -> Role | None:
        """Return the role that typing ``text`` grants. May compute scrypt hashes: call it in a thread."""
        return _matching(self._ui, text)

    def by_header_phrase(self, phrase: str) -> Role | None:
        """Return the role of an agent that sends ``phrase``."""
        return _matching(self._header, phrase)


def _matching(roles: list[Role], text: str) -> Role | None:
    # compares all phrases, so that the time does not reveal which one matches
    matching = [role for role in roles if role.matches is not None and role.matches(text)]
    return matching[0] if matching else None


def _parse_role(name: object, value: object, endpoints: Collection[str]) -> Role:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ValueError(f"client_roles: a role's name must be a string of printable characters, not {name!r}.")
    field_name = f"client_roles[{name!r}]"
    if not isinstance(value, Mapping) or set(value) != {"apis"} or not isinstance(value["apis"], Mapping):
        raise ValueError(f"{field_name}: must be a dict with 'apis' as its only key, which must be a dict.")
    field_name += "['apis']"
    fields = dict(value["apis"])
    allow, method = _parse_allow(field_name, fields.pop("allow", None), endpoints), fields.pop("auth_method", None)
    if method not in AUTH_METHODS:
        raise ValueError(f"{field_name}: auth_method must be one of {', '.join(AUTH_METHODS)}.")
    use_session = _parse_flag(field_name, "use_session", fields.pop("use_session", True))
    enable_dev_tool = _parse_flag(field_name, "enable_dev_tool", fields.pop("enable_dev_tool", False))
    if method != NO_PHRASE and use_session != (method in UI_METHODS):
        raise ValueError(f"{field_name}: use_session must be {method in UI_METHODS} if auth_method is {method!r}.")
    matches = None
    if method != NO_PHRASE:
        if method not in fields:
            raise ValueError(f"{field_name}: {method} is missing, the secret of auth_method {method!r}.")
        try:
            matches = PHRASE_METHODS[method](fields.pop(method))
        except ValueError as error:
            raise ValueError(f"{field_name}: {method} {error}.") from None
    for key in fields:
        if key in PHRASE_METHODS:
            raise ValueError(f"{field_name}: {key} cannot be used with auth_method {method!r}.")
        raise ValueError(f"{field_name}: unknown field {key!r}.")
    return Role(name, allow, method, use_session, enable_dev_tool, matches)


def _parse_allow(field_name: str, allow: object, endpoints: Collection[str]) -> frozenset[str] | None:
    if allow == "all":
        return None
    if not isinstance(allow, list | tuple | set | frozenset):
        raise ValueError(f"{field_name}: allow must be 'all' or a list of endpoint names.")
    for name in allow:
        if not isinstance(name, str) or name not in endpoints:
            raise ValueError(f"{field_name}: unknown endpoint {name!r} in allow; choose from {', '.join(endpoints)}.")
    return frozenset(allow)


def _parse_flag(field_name: str, name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{field_name}: {name} must be True or False.")
    return value


def _names(roles: list[Role]) -> str:
    return " and ".join(repr(role.name) for role in roles) or "none"
