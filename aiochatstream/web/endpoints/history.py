"""Endpoints that read, edit, export and import conversations."""

from __future__ import annotations

from typing import Any

from aiohttp import ETag, hdrs, web

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.user import SaveResult
from aiochatstream.runtime.turn_request import answer_index
from aiochatstream.web.auth.origins import check_origin
from aiochatstream.web.errors import json_endpoint
from aiochatstream.web.json import json_response
from aiochatstream.web.request_models import CommitRequest, ConversationRef, DeleteMessageQuery, HistoryQuery
from aiochatstream.web.request_reading import read_body, read_import, read_query
from aiochatstream.web.server import Server
from aiochatstream.web.streaming.formats import save_summary


@json_endpoint
async def history(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /history``: the messages of a conversation; a running answer has the state ``running``."""
    query = read_query(request, HistoryQuery)
    if query.abandon_lost:  # changes the conversation, unlike other GET requests
        check_origin(request, server.allowed_origins)
    user = await server.user_session(request)
    user.abandon_lost = query.abandon_lost
    turn = server.running_turn(user, query.conversation)
    if turn is not None and turn.base is not None:
        conversation = turn.base
        running = _messages(
            turn.user_text,
            turn.prefix + turn.text,
            turn.message_id,
            "running",
            turn.prefix_thinking + turn.thinking,
        )
    else:
        conversation, running = await user.load(query.conversation), []
        if turn is None and conversation.number:
            await user.put_in_session(query.conversation, conversation, answered=True)
    messages = _all_messages(conversation) + running
    response = json_response({"conversation": query.conversation, "turn": conversation.number, "messages": messages})
    if not running:
        response.etag = ETag(str(conversation.number))
    return response


@json_endpoint
async def delete_message(server: Server, request: web.Request) -> web.StreamResponse:
    """``DELETE /history/{message_id}``: delete an answer and its user message."""
    query = read_query(request, DeleteMessageQuery)
    user = await server.user_session(request)
    message_id = request.match_info["message_id"]

    def change(conversation: Conversation) -> Conversation:
        return conversation.without(answer_index(conversation, message_id, "message_id"))

    result = await server.rewrite(user, query.conversation, change, if_turn=query.if_turn)
    return _change_response(result)


@json_endpoint
async def export_conversation(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /export``: the conversation as a JSON file, which ``POST /import`` accepts."""
    query = read_query(request, ConversationRef)
    user = await server.user_session(request)
    conversation = await user.load(query.conversation)
    disposition = f'attachment; filename="{query.conversation}.json"'
    return json_response({"messages": _all_messages(conversation)}, headers={hdrs.CONTENT_DISPOSITION: disposition})


@json_endpoint
async def import_conversation(server: Server, request: web.Request) -> web.StreamResponse:
    """``POST /import``: replace a conversation with an exported one."""
    body = await read_import(server, request)
    user = await server.user_session(request)
    result = await server.rewrite(
        user,
        body.conversation,
        lambda conversation: conversation.with_turns_of(body.to_conversation()),
        if_turn=body.if_turn,
    )
    return _change_response(result)


@json_endpoint
async def commit(server: Server, request: web.Request) -> web.StreamResponse:
    """``POST /commit``: store the last answer in the cookie, if conversations are stored in cookies."""
    body = await read_body(server, request, CommitRequest)
    user = await server.user_session(request)
    return _change_response(await user.commit(body.commit))


def _change_response(result: SaveResult) -> web.Response:
    return json_response({"success": True, "message": "success", **save_summary(result)})


def _all_messages(conversation: Conversation) -> list[dict[str, Any]]:
    return [
        message
        for turn in conversation.turns
        for message in _messages(turn.user, turn.answer, turn.message_id, turn.state, turn.thinking)
    ]


def _messages(user: str, answer: str, message_id: str, state: str, thinking: str) -> list[dict[str, Any]]:
    message = {"role": "assistant", "content": answer, "message_id": message_id, "state": state}
    if thinking:
        message["thinking"] = thinking
    return [{"role": "user", "content": user}, message]
