"""The endpoints as a table: what each is called, and where it is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web

from aiochatstream.web import feedback, generation_params, handlers, history, inspection, page
from aiochatstream.web.errors import ServerHandler

if TYPE_CHECKING:
    from aiochatstream.chat_stream import ChatStream


class Api(NamedTuple):
    """One endpoint. Its name is also that of its handler, and what the roles' ``allow`` lists say.

    parts: other paths that come with it, and are of no use without.
    """

    name: str
    route: Callable[..., web.RouteDef]
    path: str
    handler: ServerHandler[...]
    parts: Mapping[str, ServerHandler[...]] = MappingProxyType({})


PAGE_PARTS: Mapping[str, ServerHandler[...]] = MappingProxyType(
    {"/page/{version}/{name:.+}": page.page_file, "/ui_config": page.ui_config}
)

APIS = {
    api.name: api
    for api in (
        Api("chat_stream", web.post, "/chat_stream", handlers.chat_stream),
        Api("stop", web.post, "/chat_stream/stop", handlers.stop),
        Api("clear_context", web.post, "/clear_context", handlers.clear_context),
        Api("history", web.get, "/history", history.history),
        Api("delete_message", web.delete, "/history/{message_id}", history.delete_message),
        Api("export_conversation", web.get, "/export", history.export_conversation),
        Api("import_conversation", web.post, "/import", history.import_conversation),
        Api("commit", web.post, "/commit", history.commit),
        Api("get_prompt", web.get, "/get_prompt", inspection.get_prompt),
        Api("set_feedback", web.post, "/set_feedback", feedback.set_feedback),
        Api("set_generation_params", web.post, "/set_generation_params", generation_params.set_generation_params),
        Api("get_generation_params", web.get, "/get_generation_params", generation_params.get_generation_params),
        Api("get_load", web.get, "/get_load", inspection.get_load),
        Api("get_resource_usage", web.get, "/get_resource_usage", inspection.get_resource_usage),
        Api("healthz", web.get, "/healthz", handlers.healthz),
        Api("readyz", web.get, "/readyz", handlers.readyz),
        Api("metrics", web.get, "/metrics", handlers.metrics),
        Api("webui_index", web.get, "/", page.webui_index, PAGE_PARTS),
    )
}


def routes(
    server: ChatStream,
    include: Collection[str] | None = None,
    exclude: Collection[str] | None = None,
    prefix: str = "",
) -> list[web.RouteDef]:
    """The chosen endpoints of ``server``, all by default. Raises ValueError for unknown names and other prefixes."""
    if include is not None and exclude is not None:
        raise ValueError("include and exclude: give one of the two.")
    chosen = APIS.keys() if include is None else _names("include", include)
    left_out = frozenset() if exclude is None else _names("exclude", exclude)
    if prefix and not (prefix.startswith("/") and not prefix.endswith("/")):
        raise ValueError(f"prefix: must begin with a slash and not end with one, not {prefix!r}.")
    found = []
    for api in APIS.values():
        if api.name in chosen and api.name not in left_out:
            found.append(api.route(prefix + api.path, functools.partial(api.handler, server)))
            found += [api.route(prefix + path, functools.partial(part, server)) for path, part in api.parts.items()]
    return found


def chosen_routes(server: ChatStream, options: object) -> list[web.RouteDef]:
    """What chatstream's ``options`` of ``append_apis`` choose. Raises ValueError for wrong ones."""
    if not isinstance(options, Mapping):
        raise ValueError(f"options: must be a dict, not {options!r}.")
    for key in options:
        if key not in ("include", "exclude", "all", "web_ui_params"):
            raise ValueError(f"options: {key!r} is none of 'include', 'exclude', 'all' and 'web_ui_params'.")
    choices = [key for key in options if key != "web_ui_params"]
    if len(choices) != 1:
        given = " and ".join(map(repr, choices)) or "none"
        raise ValueError(f"options: must have exactly one of 'include', 'exclude' and 'all', not {given}.")
    if options.get("all", True) is not True:
        raise ValueError(f"options: 'all' must be True, not {options['all']!r}.")
    include, exclude = (_names(key, options[key]) if key in options else None for key in ("include", "exclude"))
    return routes(server, include, exclude)


def _names(where: str, names: Any) -> frozenset[str]:
    if not isinstance(names, list | tuple | set | frozenset):
        raise ValueError(f"{where}: must be a list of API names, not {names!r}.")
    for name in names:
        if not isinstance(name, str) or name not in APIS:
            raise ValueError(f"{where}: {name!r} is no API name; they are {', '.join(APIS)}.")
    return frozenset(names)
