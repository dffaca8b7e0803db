"""Endpoints for the generation parameters of a user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from aiochatstream.params import THINKING_VARIABLES, ParamOverrides
from aiochatstream.web.errors import chatstream_endpoint
from aiochatstream.web.json import json_response
from aiochatstream.web.request_models import GenerationParamsChange
from aiochatstream.web.request_reading import read_body
from aiochatstream.web.server import Server


@chatstream_endpoint
async def set_generation_params(server: Server, request: web.Request) -> web.StreamResponse:
    """``POST /set_generation_params``: change the generation parameters of the user's next answers."""
    body = await read_body(server, request, GenerationParamsChange)
    user = await server.user_session(request)
    await user.refresh()
    params = server.user_params(user).model_copy(update=body.changes())
    server.check_template_variables(params, "")
    server.override(params, prefix="")
    await user.save_params(params.model_dump(mode="json", exclude_none=True))
    return _effective_params(server, params)


@chatstream_endpoint
async def get_generation_params(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /get_generation_params``: the generation parameters of the user's next answers, and their ranges."""
    return _effective_params(server, server.user_params(await server.user_session(request)))


def _effective_params(server: Server, overrides: ParamOverrides) -> web.Response:
    """Respond with the values of all parameters, their allowed ranges, and the origins of the values.

    A seed of null means a random seed. ``thinking_levels`` and ``template_variables`` list the values of ``thinking``
    and the names in ``chat_template_kwargs`` that requests may set, none if the chat template has none.
    """
    values = server.override(overrides).model_dump(mode="json", include=set(ParamOverrides.model_fields))
    sources = {name: server.source_of(name, overrides) for name in values}
    body = {
        "success": True,
        "message": "success",
        "generation_params": _rename({**values, "seed": overrides.seed}),
        "limits": server.param_limits.ranges(server.params),
        "sources": _rename(sources),
        "thinking_levels": server.thinking_levels,
        "template_variables": [
            name for name in server.template_variables if server.allow_system_prompt or name in THINKING_VARIABLES
        ],
    }
    return json_response(body)


def _rename(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` under chatstream's names, if it has them. These come first, in its order."""
    first = {"temperature": "temperature", "top_k": "top_k_value", "top_p": "top_p_value"}
    renamed = {theirs: values[ours] for ours, theirs in first.items()}
    return renamed | {name: value for name, value in values.items() if name not in first}
