"""The parameters that a user has set for all of the user's answers."""

from __future__ import annotations

from aiohttp import web

from aiochatstream.param_limits import allowed_ranges
from aiochatstream.params import ParamOverrides
from aiochatstream.web.errors import chatstream_endpoint
from aiochatstream.web.json import json_response
from aiochatstream.web.request_models import GenerationParamsChange
from aiochatstream.web.request_reading import read_body
from aiochatstream.web.server import Server


@chatstream_endpoint
async def set_generation_params(server: Server, request: web.Request) -> web.StreamResponse:
    """``POST /set_generation_params``: change what the user's next answers are made with."""
    asked = await read_body(server, request, GenerationParamsChange)
    user = await server.user_session(request)
    await user.refresh()
    wanted = server.user_params(user).model_copy(update=asked.changes())
    server.override(wanted, where="")
    await user.keep_params(wanted.model_dump(mode="json", exclude_none=True))
    return _effective(server, wanted)


@chatstream_endpoint
async def get_generation_params(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /get_generation_params``: what the user's next answers are made with."""
    return _effective(server, server.user_params(await server.user_session(request)))


def _effective(server: Server, wanted: ParamOverrides) -> web.Response:
    """All values, the server's own too, under chatstream's names where it has any, and the ranges that they may be in.

    A seed of null is a random one.
    """
    others = server.override(wanted).model_dump(mode="json", include=set(ParamOverrides.model_fields))
    params = {
        "temperature": others.pop("temperature"),
        "top_k_value": others.pop("top_k"),
        "top_p_value": others.pop("top_p"),
        **others,
        "seed": wanted.seed,
    }
    limits = allowed_ranges(server.param_limits, server.params)
    return json_response({"success": True, "message": "success", "generation_params": params, "limits": limits})
