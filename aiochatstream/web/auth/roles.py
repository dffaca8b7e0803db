"""Who may call what: roles, how a client comes by one, and what each is allowed. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiochatstream.web.auth import pass_phrases
from aiochatstream.web.auth.pass_phrases import Matcher

NO_PHRASE = "nothing"

UI_METHODS = {
    "ui_pass_phrase": pass_phrases.plain,
    "ui_pass_phrase_sha256": pass_phrases.sha256,
    "ui_pass_phrase_scrypt": pass_phrases.scrypt,
}
"""Typing the phrase into the chat grants the role to the session."""

HEADER_METHODS = {"header_phrase": pass_phrases.plain, "header_phrase_sha256": pass_phrases.sha256}
"""A client without a session says the phrase in a header of each request."""

PHRASE_METHODS = UI_METHODS | HEADER_METHODS

AUTH_METHODS = (NO_PHRASE, *PHRASE_METHODS)

PROBES = frozenset({"healthz", "readyz"})
"""Requests of load balancers and orchestrators, by whatever address or name."""

ALWAYS_ALLOWED = PROBES | {"metrics"}
"""Whoever asks: a load balancer has no role, and /metrics has a policy of its own."""

ALLOWED_WITH = {"commit": "chat_stream"}
"""APIs that are a part of another one: who may call that may call these."""

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
"""For the one role of a server without ``client_roles``: what the chat page needs, and get_load."""


@dataclass(frozen=True)
class Role:
    """What a client may do.

    allow: API names; None is all of them.
    auth_method: how a client comes by it, one of :data:`AUTH_METHODS`.
    use_session: it is for browsers, which have a session; otherwise for agents, which have none.
    matches: whether a text is the role's phrase.
    """

    name: str
    allow: frozenset[str] | None
    auth_method: str = NO_PHRASE
    use_session: bool = True
    enable_dev_tool: bool = False
    matches: Matcher | None = field(default=None, repr=False)

    def may_call(self, api: str) -> bool:
        """Whether a client in this role may call the endpoint of this API name."""
        return api in ALWAYS_ALLOWED or self.allow is None or ALLOWED_WITH.get(api, api) in self.allow


class Roles:
    """All roles of a server.

    :param client_roles: chatstream's shape, ``{name: {"apis": {"allow": "all" | [API names], "auth_method": ...,
        "use_session": bool = True, "enable_dev_tool": bool = False, <auth_method>: <secret>}}}``. None: one role, which
        every browser has.
    :param apis: the API names that there are.

    Raises ValueError that names the role and the field.
    """

    def __init__(self, client_roles: Mapping[str, Any] | None, apis: Collection[str]) -> None:
        if client_roles is None:
            self._roles = {"default": Role("default", ALLOWED_BY_DEFAULT)}
        elif isinstance(client_roles, Mapping):
            self._roles = {name: _role(name, given, apis) for name, given in client_roles.items()}
        else:
            raise ValueError("client_roles: must be a dict of role names and roles.")
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
        """Whether a session can have another role than the default one."""
        return bool(self._ui)

    def granted(self, name: object) -> Role:
        """The role of a session that was once granted ``name``: the default one if that is not to be had any more."""
        return next((role for role in self._ui if role.name == name), self.browser_default)

    def by_typed_phrase(self, text: str) -> Role | None:
        """The role that typing ``text`` grants. Blocks where a phrase is hashed with scrypt: call it in a thread."""
        return _matching(self._ui, text)

    def by_header_phrase(self, phrase: str) -> Role | None:
        """The role of an agent that says ``phrase``."""
        return _matching(self._header, phrase)


def _matching(roles: list[Role], text: str) -> Role | None:
    """All are compared, so that the time does not tell which one it was."""
    matching = [role for role in roles if role.matches is not None and role.matches(text)]
    return matching[0] if matching else None


def _role(name: object, given: object, apis: Collection[str]) -> Role:
    """One role of ``client_roles``. Raises ValueError."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ValueError(f"client_roles: a role's name must be a string of printable characters, not {name!r}.")
    where = f"client_roles[{name!r}]"
    if not isinstance(given, Mapping) or set(given) != {"apis"} or not isinstance(given["apis"], Mapping):
        raise ValueError(f"{where}: must be a dict with the one key 'apis', which is a dict.")
    where += "['apis']"
    fields = dict(given["apis"])
    allow, method = _allow(where, fields.pop("allow", None), apis), fields.pop("auth_method", None)
    if method not in AUTH_METHODS:
        raise ValueError(f"{where}: auth_method must be one of {', '.join(AUTH_METHODS)}.")
    use_session = _flag(where, "use_session", fields.pop("use_session", True))
    enable_dev_tool = _flag(where, "enable_dev_tool", fields.pop("enable_dev_tool", False))
    if method != NO_PHRASE and use_session != (method in UI_METHODS):
        raise ValueError(f"{where}: use_session must be {method in UI_METHODS} where auth_method is {method!r}.")
    matches = None
    if method != NO_PHRASE:
        if method not in fields:
            raise ValueError(f"{where}: {method} is missing, the secret of auth_method {method!r}.")
        try:
            matches = PHRASE_METHODS[method](fields.pop(method))
        except ValueError as error:
            raise ValueError(f"{where}: {method} {error}.") from None
    for key in fields:
        if key in PHRASE_METHODS:
            raise ValueError(f"{where}: {key} is a secret that does not go with auth_method {method!r}.")
        raise ValueError(f"{where}: {key!r} is no field of a role.")
    return Role(name, allow, method, use_session, enable_dev_tool, matches)


def _allow(where: str, allow: object, apis: Collection[str]) -> frozenset[str] | None:
    if allow == "all":
        return None
    if not isinstance(allow, list | tuple | set | frozenset):
        raise ValueError(f"{where}: allow must be 'all' or a list of API names.")
    for api in allow:
        if not isinstance(api, str) or api not in apis:
            raise ValueError(f"{where}: allow names {api!r}, but the API names are {', '.join(apis)}.")
    return frozenset(allow)


def _flag(where: str, name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{where}: {name} must be True or False.")
    return value


def _names(roles: list[Role]) -> str:
    return " and ".join(repr(role.name) for role in roles) or "none"
