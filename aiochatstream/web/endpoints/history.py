"""What was said: to be read, changed, taken away and brought back."""

from __future__ import annotations

from typing import Any

from aiohttp import ETag, hdrs, web

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.user import SaveResult
from aiochatstream.runtime.turn_request import answer_index
from aiochatstream.web.auth.origins import check_origin
from aiochatstream.web.errors import json_endpoint
from aiochatstream.web.json import json_response
from aiochatstream.web.request_models import CommitRequest, ConversationRef, HistoryChange, HistoryQuery
from aiochatstream.web.request_reading import read_body, read_import, read_query
from aiochatstream.web.server import Server
from aiochatstream.web.streaming.formats import save_summary


@json_endpoint
async def history(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /history``: the conversation as messages; an answer under way is there with state ``running``."""
    asked = read_query(request, HistoryQuery)
    if asked.abandon_lost:  # changes the conversation, other than what GET does else
        check_origin(request, server.allowed_origins)
    user = await server.user_session(request)
    user.abandon_lost = asked.abandon_lost
    turn = server.running_turn(user, asked.conversation)
    if turn is not None and turn.base is not None:
        conversation = turn.base
        running = _messages(turn.user_text, turn.begun + turn.text, turn.message_id, "running")
    else:
        conversation, running = await user.load(asked.conversation), []
        if turn is None and conversation.number:
            await user.put_in_session(asked.conversation, conversation, answered=True)
    messages = _all_messages(conversation) + running
    response = json_response({"conversation": asked.conversation, "turn": conversation.number, "messages": messages})
    if not running:
        response.etag = ETag(str(conversation.number))
    return response


@json_endpoint
async def delete_message(server: Server, request: web.Request) -> web.StreamResponse:
    """``DELETE /history/{message_id}``: forget one answer and the message that it answers."""
    asked = read_query(request, HistoryChange)
    user = await server.user_session(request)
    message_id = request.match_info["message_id"]

    def change(conversation: Conversation) -> Conversation:
        return conversation.without(answer_index(conversation, message_id, "message_id"))

    kept = await server.rewrite(user, asked.conversation, change, if_turn=asked.if_turn)
    return _changed(kept)


@json_endpoint
async def export_conversation(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /export``: the conversation as a JSON file, which ``POST /import`` takes again."""
    asked = read_query(request, ConversationRef)
    user = await server.user_session(request)
    conversation = await user.load(asked.conversation)
    name = f'attachment; filename="{asked.conversation}.json"'
    return json_response({"messages": _all_messages(conversation)}, headers={hdrs.CONTENT_DISPOSITION: name})


@json_endpoint
async def import_conversation(server: Server, request: web.Request) -> web.StreamResponse:
    """``POST /import``: put what was exported in the place of a conversation."""
    asked = await read_import(server, request)
    user = await server.user_session(request)
    kept = await server.rewrite(
        user,
        asked.conversation,
        lambda conversation: conversation.with_turns_of(asked.to_conversation()),
        if_turn=asked.if_turn,
    )
    return _changed(kept)


@json_endpoint
async def commit(server: Server, request: web.Request) -> web.StreamResponse:
    """``POST /commit``: take the last answer into the cookie, where conversations live there."""
    asked = await read_body(server, request, CommitRequest)
    user = await server.user_session(request)
    return _changed(await user.commit(asked.commit))


def _changed(kept: SaveResult) -> web.Response:
    return json_response({"success": True, "message": "success", **save_summary(kept)})


def _all_messages(conversation: Conversation) -> list[dict[str, Any]]:
    return [
        message
        for turn in conversation.turns
        for message in _messages(turn.user, turn.answer, turn.message_id, turn.state)
    ]


def _messages(user: str, answer: str, message_id: str, state: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": user},
        {"role": "assistant", "content": answer, "message_id": message_id, "state": state},
    ]
