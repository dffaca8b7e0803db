"""Feedback on answers."""

from __future__ import annotations

import inspect

from aiohttp import web

from aiochatstream.errors import NotFound
from aiochatstream.web.errors import chatstream_endpoint
from aiochatstream.web.feedback import Feedback
from aiochatstream.web.json import json_response
from aiochatstream.web.request_models import FeedbackRequest
from aiochatstream.web.request_reading import read_body
from aiochatstream.web.server import Server


@chatstream_endpoint
async def set_feedback(server: Server, request: web.Request) -> web.StreamResponse:
    """``POST /set_feedback``: hand a like or dislike of one answer to the application."""
    asked = await read_body(server, request, FeedbackRequest)
    user = await server.user_session(request)
    conversation = await user.load(asked.conversation)
    at = next((at for at, turn in enumerate(conversation.turns) if turn.message_id == asked.message_id), None)
    if at is None:
        raise NotFound(f"message_id: the conversation {asked.conversation!r} has no answer {asked.message_id!r}.")
    turn = conversation.turns[at]
    callback = server.on_feedback_received
    if callback is not None and server.ratings.count((user.id, turn.message_id), asked):
        told = conversation.drop_newest(len(conversation.turns) - at)
        try:
            feedback = Feedback(
                is_like=asked.is_like,
                form_data=asked.form_data,
                prompt=await server.prompt_text(told, turn.user),
                target_message_id=turn.message_id,
                target_message=turn.answer,
                generation_params=server.override(server.user_params(user)).model_dump(mode="json"),
            )
            result = callback(request, feedback)
            if inspect.isawaitable(result):
                await result
        except BaseException:
            server.ratings.forget((user.id, turn.message_id))
            raise
    return json_response({"success": True, "message": "success", "target_message_id": turn.message_id})
