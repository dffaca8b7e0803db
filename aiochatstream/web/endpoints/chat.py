"""Endpoints that begin and stop answers, and clear conversations."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from aiochatstream.engines.upstream import hops
from aiochatstream.errors import ChatStreamError, InvalidValue, NotRunningHere
from aiochatstream.runtime.running_turn import RunningTurn
from aiochatstream.web.auth.access import check_access
from aiochatstream.web.auth.role_grants import typed_role
from aiochatstream.web.errors import chatstream_endpoint, handle_errors, json_endpoint
from aiochatstream.web.json import json_response
from aiochatstream.web.request_models import ChatRequest, ConversationRef
from aiochatstream.web.request_reading import read_body, validate_body
from aiochatstream.web.server import Server
from aiochatstream.web.streaming.callbacks import Callback
from aiochatstream.web.streaming.formats import WRITERS, TurnResponse, wire_format_of
from aiochatstream.web.streaming.outcome import Outcome


@handle_errors
async def chat_stream(
    server: Server,
    request: web.Request,
    request_body: dict[str, Any] | bytes | None = None,
    callback: Callback | None = None,
) -> web.StreamResponse:
    """``POST /chat_stream``: answer a message in the format that the client requests, then call the callback."""
    return await respond(server, request, request_body, callback)


async def respond(
    server: Server, request: web.Request, request_body: dict[str, Any] | bytes | None, callback: Callback | None
) -> web.StreamResponse:
    """Return the response to ``POST /chat_stream``, or raise the error of a refused request; then call the callback."""
    outcome = Outcome(request)
    try:
        return await _answer(server, request, request_body, outcome)
    except BaseException as error:
        outcome.record_failure(error)
        raise
    finally:
        if callback is not None:
            turn = None if outcome.response is None else outcome.response.turn
            server.callbacks.call(callback, request, outcome.message(), turn)


async def _answer(
    server: Server, request: web.Request, request_body: dict[str, Any] | bytes | None, outcome: Outcome
) -> web.StreamResponse:
    role = await check_access(server, request, "chat_stream")
    hops.receive(request.headers.get(hops.HEADER), server.engine.server_id)
    server.check_room()
    if request_body is None:
        body = await read_body(server, request, ChatRequest)
    else:
        body = validate_body(request_body, ChatRequest, max_bytes=server.limits.max_request_bytes)
    wire_format = wire_format_of(request, server.wire_format)
    user = await server.user_session(request)
    user.abandon_lost = body.abandon_lost
    new_role = await typed_role(server, request, body)
    if new_role is not None:
        role = new_role
        await user.grant(role.name)
        turn = RunningTurn.with_text(f"New role: '{role.name}' has been granted")
    else:
        params = server.user_params(user)
        user.charge()
        try:
            if body.system and not server.allow_system_prompt:
                raise InvalidValue("system: must be absent; this server sets the system prompt itself.")
            if body.params is not None:
                server.check_template_variables(body.params)
            turn = await server.begin_turn(
                user, body.conversation, body.turn_request, params, body.params, system=body.system or ""
            )
        except ChatStreamError as error:
            server.metrics.refused(error.code)
            raise
    response = TurnResponse(request, user, body.conversation, turn, server.limits.write_timeout, role.enable_dev_tool)
    outcome.response = response

    def on_disconnect() -> None:
        outcome.disconnected = True
        turn.stop("left")

    try:
        with response.resources, user.pinned():
            return await response.send(
                lambda: WRITERS[wire_format](response), server.disconnects, on_disconnect, outcome.record_failure
            )
    finally:
        turn.stop("left")  # no effect on a turn that has ended


@json_endpoint
async def stop(server: Server, request: web.Request) -> web.StreamResponse:
    """``POST /chat_stream/stop``: stop the running answer of a conversation and keep its text so far."""
    body = await read_body(server, request, ConversationRef)
    user = await server.user_session(request)
    message_id = await server.stop_turn(user, body.conversation, "stopped")
    if message_id is None:
        raise NotRunningHere("No answer of this conversation is running in this process.")
    return json_response({"success": True, "message": "Answer stopped", "message_id": message_id})


@chatstream_endpoint
async def clear_context(server: Server, request: web.Request) -> web.StreamResponse:
    """``POST /clear_context``: delete a conversation, and stop and discard its running answer."""
    body = await read_body(server, request, ConversationRef)
    user = await server.user_session(request)
    if await server.clear(user, body.conversation):
        return json_response({"success": True, "message": "Context successfully cleared"})
    return json_response({"success": False, "message": "no context."})
